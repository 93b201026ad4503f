"""torch's random states: those from when Lightning began to iterate, and those that a checkpoint must hold."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor

from ..model import draws
from ..model import random_state as state_on
from ..model import set_random_state as set_state_on
from ..ranks import Ranks


class RandomStates:
    """A copy of the states of the generators that a loader draws from.

    Args:
        loader: a stock loader. Its generator and its sampler's are copied, and torch's default generator.
    """

    def __init__(self, loader: Any) -> None:
        given = (getattr(loader, "generator", None), getattr(getattr(loader, "sampler", None), "generator", None))
        self._states = [(g, g.get_state()) for g in (torch.default_generator, *given) if isinstance(g, Generator)]

    @contextmanager
    def drawn_from(self) -> Iterator[None]:
        """A context in which the generators have the copied states. Afterwards they are as before it."""
        now = [(generator, generator.get_state()) for generator, _ in self._states]
        _set(self._states)
        try:
            yield
        finally:
            _set(now)


def _set(states: list[tuple[Generator, Tensor]]) -> None:
    for generator, state in states:
        generator.set_state(state)


def remembering(process: Callable[[Any], Any], seen: dict[int, RandomStates]) -> Callable[[Any], Any]:
    """Make a `Strategy.process_dataloader` that also copies the random states before each loader is iterated.

    Args:
        process: the strategy's own.
        seen: receives the states, by the id of the returned loader.
    """

    def process_dataloader(dataloader: Any) -> Any:
        processed = process(dataloader)
        seen[id(processed)] = RandomStates(dataloader)
        return processed

    return process_dataloader


def ranks_draw_alike() -> bool:
    """True if torch's default generator is in the same state on all ranks. Collective: every rank must call it."""
    state = zlib.crc32(torch.get_rng_state().numpy().tobytes())
    return len({said for (said,) in Ranks.from_arguments().gather([state])}) == 1


def random_state() -> dict[str, Tensor]:
    """The states of torch's default generators, for a checkpoint."""
    states = {"cpu": torch.get_rng_state()}
    if (device := _accelerator()) is not None:
        states[device.type] = state_on(device)
    return states


def set_random_state(states: dict[str, Tensor]) -> None:
    """Restore the states of `random_state()`, for the devices that are there."""
    torch.set_rng_state(states["cpu"].cpu())
    if (device := _accelerator()) is not None and device.type in states:
        set_state_on(device, states[device.type].cpu())


def _accelerator() -> torch.device | None:
    """The device beside the CPU that this process draws random numbers on."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found if found is not None and draws(found) else None

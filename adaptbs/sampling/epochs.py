"""From a dataset and its order to batches of changing size, epoch by epoch, and what is left of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Generator
from torch.utils.data import IterableDataset

from ..ranks import ALONE, Ranks
from .batch_sampler import EpochCut
from .draw import Rest, redraw
from .order import indices
from .own import OwnBatchSampler, OwnStreamSampler
from .ranks import SharedSampler


class EpochSource:
    """The batch sampler behind a DataLoader whose batch changes, and the iterations over it.

    Args:
        dataset, batch_size, shuffle, sampler, drop_last, generator, num_workers: as of a DataLoader.
        batches_per_step: batches of an optimizer step, on each rank.
        ranks: the ranks that share every batch; `batch_size` is that of each.

    Attributes:
        batch_sampler: the one to give to a DataLoader, or to put in the place of its own where the dataset `streams`.
        order: yields the indices; a stand-in where the dataset has none.
        streams: whether the dataset is an IterableDataset.
        delivering: the iteration that has delivered last, of those under way.
        latest: the same, also when it is over.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        shuffle: bool | None,
        sampler: Any,
        drop_last: bool,
        generator: Generator | None,
        batches_per_step: int,
        ranks: Ranks = ALONE,
        num_workers: int = 0,
    ) -> None:
        self.streams = isinstance(dataset, IterableDataset)
        self.ranks, self.order = ranks, indices(dataset, shuffle, sampler, generator)
        if ranks.world_size > 1:
            self.order = SharedSampler(self.order, ranks, pad=not drop_last)
        cut = OwnStreamSampler if self.streams else OwnBatchSampler
        start = batch_size * ranks.world_size
        size = partial(int, start * batches_per_step)  # until `follow` says another
        self.batch_sampler = cut(self.order, size, start, drop_last, batches_per_step, ranks)
        if isinstance(self.batch_sampler, OwnStreamSampler) and not num_workers:
            self.batch_sampler.read_here(dataset)
        self._generators = _different(generator, getattr(self.order, "generator", None))
        self._under_way: list[EpochCut] = []  # iterations, the one that delivered last at the end
        self.delivering: EpochCut | None = None
        self.latest: EpochCut | None = None
        self._rest: Rest | None = None  # of an epoch, for the next iteration to deliver
        self._loaded: dict[str, Any] | None = None  # its state, as long as no batch of it has been delivered

    def follow(self, size: Callable[[], int]) -> None:
        """Ask this for the size of the next optimizer step, samples, from here on."""
        self.batch_sampler.follow(size)

    def opened(self) -> AbstractContextManager[None]:
        """Put around the beginning of the loader's own iteration over `batch_sampler`, which refuses any other."""
        return self.batch_sampler.opened()

    def iterate(self, fetch: Callable[[], Iterator[Any]]) -> tuple[EpochCut, Iterator[Any]]:
        """Begin an epoch, or go on with one: the iteration, and its batches.

        Args:
            fetch: begins a DataLoader's own iteration over `batch_sampler`.
        """
        rest, self._rest = self._rest, None
        self.latest = self.delivering
        # To go on draws nothing: the run that was not stopped drew its seed when the epoch began.
        drawing = nullcontext() if rest is None else self._drawing_nothing()
        with self.batch_sampler.going_on_from(rest) as begun, drawing:
            fetched = fetch()
        return begun[-1], fetched

    @property
    def length(self) -> int:
        """Batches of the epoch under way: those delivered and those left at the size of now.

        Between two epochs it is that of the one that has ended, and of a whole epoch before the first.
        """
        return len(self.batch_sampler) if self.latest is None else self.latest.length

    def begin_plain(self) -> None:
        """Take note of an iteration over batches of the size of now, which are not counted."""
        self.latest = self.delivering

    def delivers(self, cut: EpochCut) -> None:
        """Take note of the iteration that delivers a batch, where it is not `delivering` already."""
        if cut not in self._under_way and isinstance(self.order, SharedSampler):
            self.order.check_alike()
        self.ends(cut)
        self._loaded = None
        self._under_way.append(cut)
        self.delivering = self.latest = cut

    def ends(self, cut: EpochCut) -> None:
        """Take note of the end of an iteration."""
        if cut in self._under_way:
            self._under_way.remove(cut)
        self.delivering = self._under_way[-1] if self._under_way else None
        self.latest = self.delivering or self.latest

    def state_dict(self, under_way: bool) -> dict[str, Any]:
        """The rest of the epoch under way, if one is, and the generators' states.

        Raises:
            RuntimeError: where it is not clear which iteration that is.
        """
        if not under_way and self._under_way:
            raise RuntimeError(
                "an iteration over the loader has ended inside of another, so what is left of the epoch is not clear: "
                "save after the next batch, and end or drop iterators that you no longer use"
            )
        rest = self._under_way[-1].state_dict() if self._under_way else self._loaded
        return {"rest": rest, "generators": [generator.get_state() for generator in self._generators]}

    def read(self, state: dict[str, Any]) -> Rest | None:
        """The rest of the epoch that was under way, its order drawn again; nothing is changed.

        Raises:
            ValueError: where the order cannot be drawn again, because it is another's.
        """
        rest = state["rest"]
        if rest is None:
            return None
        if isinstance(self.batch_sampler, OwnStreamSampler):
            self.batch_sampler.check_state(rest)
            return Rest(rest)
        return Rest(rest, redraw(self.order, rest["order"]))

    def go_on(self, state: dict[str, Any], rest: Rest | None) -> None:
        """Let the next iteration be the rest of the one that was under way, as `read` has read it."""
        self._rest, self._loaded, self._under_way, self.delivering = rest, state["rest"], [], None
        for generator, saved in zip(self._generators, state["generators"], strict=False):
            generator.set_state(saved)

    def _drawing_nothing(self) -> AbstractContextManager[Any]:
        return _Untouched(self._generators) if self._generators else torch.random.fork_rng(devices=[])


class _Untouched(AbstractContextManager[None]):
    """Puts generators back to where they were."""

    def __init__(self, generators: list[Generator]) -> None:
        self._saved = [(generator, generator.get_state()) for generator in generators]

    def __exit__(self, *_: object) -> None:
        for generator, state in self._saved:
            generator.set_state(state)


def _different(*generators: Any) -> list[Generator]:
    found: list[Generator] = []
    for generator in generators:
        if isinstance(generator, Generator) and not any(generator is other for other in found):
            found.append(generator)
    return found

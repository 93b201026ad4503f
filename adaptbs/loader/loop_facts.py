"""Facts of a library's training loop, which its adapter states, so that they need not be found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..run import LookAhead


@dataclass(frozen=True, kw_only=True)
class LoopFacts:
    """Facts of a loop. By default all of them are found out, as for a loop that nobody knows.

    Attributes:
        look_ahead: makes one for each iteration: NoLookAhead where the loop trains on each batch before it asks for
            one of the next step, OneAheadOrLook where it fetches one ahead. None: found out from the backward passes.
        schedule_steps: steps of the schedule that the library makes for each optimizer step, such as 1. The scheduler
            then goes to its exact place in the plan of the fixed run, in which what an epoch's end leaves of an
            accumulated step makes an optimizer step too. None: found out from the calls.
        rest_makes_a_step: True if what an epoch's end leaves of an accumulated step is known to make an optimizer step.
            A scheduler whose steps are found out goes by that, where it is called once for each.
        planned_epochs: length of the run, epochs, where it is no whole number of them; in place of `epochs=`.
        says_when_ready: True if the adapter calls `AdaptedLoader.gradients_are_ready()` before each optimizer step. It
            has to where the optimizer is stepped with a closure: hooks on it run before the backward pass.
        moves_schedules: True if the adapter itself moves each schedule to its place, and gives no scheduler: a rate
            that changes from batch to batch then follows the samples.
        loss_name: name of the loss in messages, where it is the library's own and no argument of the user's.
        in_runs: True if a rank's share of a batch is a run of its samples; see `Ranks`.
        micro_batch_size: the most samples that the loop lets through the model at once, in micro-batches whose
            gradients it accumulates; None: batches go through whole.
    """

    look_ahead: Callable[[], LookAhead] | None = None
    schedule_steps: int | None = None
    rest_makes_a_step: bool = False
    planned_epochs: float | None = None
    says_when_ready: bool = False
    moves_schedules: bool = False
    loss_name: str | None = None
    in_runs: bool = False
    micro_batch_size: int | None = None


UNKNOWN = LoopFacts()


class GradientsReady:
    """Calls its listeners when the gradients of an optimizer step are ready, if an adapter says so by `say`."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[], None]] = []

    def say(self) -> None:
        for listener in tuple(self._listeners):
            listener()

    def listen(self, listener: Callable[[], None]) -> Listening:
        """Call this from here on, until `remove()` of what is returned."""
        self._listeners.append(listener)
        return Listening(self._listeners, listener)


class Listening:
    """A listener that can be removed, as a hook of torch."""

    def __init__(self, listeners: list[Callable[[], None]], listener: Callable[[], None]) -> None:
        self._listeners, self._listener = listeners, listener

    def remove(self) -> None:
        """Call it no longer; nothing where it has been removed already."""
        if self._listener in self._listeners:
            self._listeners.remove(self._listener)

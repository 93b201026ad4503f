"""Runs a batch forward and backward, in pieces where the whole batch does not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from ..memory import BatchCuts, lengths, run_in_pieces, shares
from ..model import BatchLoss, Snapshot, batch_length, has_batch_norm
from .holds import NOT_CUT
from .training_run import TrainingRun

T = TypeVar("T")


class InPieces:
    """Runs the forward and backward pass of a batch. After running out of memory it undoes the pass and cuts the batch.

    A batch that goes through whole costs a copy of buffers and random states. The face runs the pieces, each with its
    share of the loss, so that their gradients add up to the batch's.

    Args:
        run: the training run.
        loss: the loss of a batch, which knows how to cut it.
        adds_up: function (batch, samples, number of pieces) -> True if the batch's loss is the sum of its pieces'.
        weights: function (pieces, samples of each) -> weights of the pieces' losses in the batch's, for a mean. The
            samples are None unless the user cuts the batch.
        parameters: returns all that the step trains.
    """

    def __init__(
        self,
        run: TrainingRun,
        loss: BatchLoss,
        adds_up: Callable[[Any, int, int], bool],
        weights: Callable[[Sequence[Any], Sequence[int | None]], Sequence[float]],
        parameters: Callable[[], Iterable[Tensor]],
    ) -> None:
        self._run, self._loss, self._adds_up, self._weights = run, loss, adds_up, weights
        self._parameters = parameters
        holds = run.controller.holds
        holds.remove(NOT_CUT)  # of a resumed run, which may have been given `split=` meanwhile
        self._cuts = BatchCuts(loss, run.model, self._shares, partial(holds.doubt, NOT_CUT))
        self.search_model()

    def search_model(self) -> None:
        """Find the buffers that a pass changes. That takes as long as a step of a small model."""
        self._before = Snapshot(self._run.model)
        self._before.drop()  # each step takes it anew

    def samples(self, batch: Any) -> int:
        """Samples of a batch: by its layout, or as delivered if the user cuts it."""
        return self._run.tracker.current.num_samples if self._loss.split_given else batch_length(batch)

    def __call__(self, batch: Any, samples: int, backward: Callable[[list[tuple[Any, float]]], T]) -> T:
        """Run the batch. `.grad` has to be None, or zero, before.

        Args:
            batch: the batch.
            samples: its samples.
            backward: function (pairs of a piece and its share of the loss) -> result. Adds to `.grad`.

        Returns:
            The result of `backward`.
        """
        controller, memory = self._run.controller, self._run.controller.memory
        new = samples > memory.largest_run
        why_not = partial(self._cuts.why_not, batch, samples)
        if new and memory.may_be_exceeded:
            why_not()  # before the batch grows past what can be run
        self._before.take(all_random=new, trained=False)
        attempt = partial(self._attempt, backward, batch, samples)
        result, fits = run_in_pieces(
            attempt, samples, memory, undo=self._undo, least=self._fewest_samples, why_not=why_not
        )
        if fits is not None:
            controller.no_more_than(None if memory.may_be_exceeded else fits, "out of memory", "memory")
        return result

    def _attempt(self, backward: Callable[[list[tuple[Any, float]]], T], batch: Any, samples: int, number: int) -> T:
        if number == 1:
            return backward([(batch, 1.0)])
        pieces = self._cuts.in_pieces(batch, samples, number)
        return backward(list(zip(pieces, self._shares(batch, samples, pieces), strict=True)))

    def _shares(self, batch: Any, samples: int, pieces: Sequence[Any]) -> list[float]:
        """The share of each piece's loss in the batch's."""
        number = len(pieces)
        if self._adds_up(batch, samples, number):
            return [1.0] * number
        return shares(self._weights(pieces, lengths(samples, number) if self._loss.split_given else [None] * number))

    def _undo(self) -> None:
        """Undo a pass that ran out of memory."""
        self._run.measuring.stop()  # what it has seen of the failed pass would be held until its end
        for p in self._parameters():
            p.grad = None
        self._before.restore()

    def _fewest_samples(self) -> int:
        """The fewest samples that a piece may have."""
        return 2 if has_batch_norm(self._run.model) else 1

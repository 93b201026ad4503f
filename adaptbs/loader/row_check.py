"""Checks, on the first batch, that a larger batch would hold more: that its rows follow the samples."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from weakref import finalize

from torch.utils.data import IterableDataset, default_collate

from ..model import collates_all, has_a_row_a_sample, preserved, takes_one_apart
from ..run import ROWS, TrainingRun
from ..sampling import BatchInfo
from .latest_input import LatestInput

log = logging.getLogger(__name__)

TRIES = 3  # samples of the first batch that are tried at most

HELD = (
    "the rows of a batch do not follow its samples: collate_fn= makes no more of two samples than of one, as where an "
    "item of the dataset is a whole batch. A larger batch would lose what is in the others, so the batch is held at "
    "batch_size=%d. To let it grow, let the dataset return single samples, or let collate_fn= join all it is given."
)

NOT_KNOWN = (
    "a batch of %d samples has not as many rows, and there is no way to try what collate_fn= makes of more samples. A "
    "larger batch might lose some, so the batch is held at batch_size=%d. To let it grow, let collate_fn= make a row "
    "of each sample."
)

TAKEN_APART = (
    "the model was called on the only sample of a batch of one, without the dimension of the samples, as by x[0] in a "
    "loop where an item of the dataset is a whole batch. The other samples of a larger batch would be lost, so the "
    "batch is held at batch_size=1. To let it grow, let the dataset return single samples; or begin with batch_size=2, "
    "if the loop joins all samples of a batch, as by x.flatten(0, 1)."
)


class RowCheck:
    """Looks at the first batch, and where that does not tell at what `collate_fn` makes of one of its samples twice.

    Of a batch of one sample, the next batch tells what the model has been called on.

    torch's own collation makes a row of each sample. So does any other if the batch has as many rows as samples, and
    more than one. Else a sample is fetched once more, with all random states put back; another if it is refused.

    Args:
        collate: as given to the loader; None: torch's own.
        dataset: the loader's.
        run: the training run, whose batch is held if the rows do not follow.

    Attributes:
        is_due: True until it is known.
    """

    def __init__(self, collate: Callable[[list[Any]], Any] | None, dataset: Any, run: TrainingRun) -> None:
        self._collate, self._dataset, self._run = collate, dataset, run
        self._own = collate is not None and collate is not default_collate
        self._held = False
        self._first: Any = None  # batch, of one sample
        self._called = LatestInput()
        self._handle: Any = None
        by_one = run.controller.start_batch_size == run.controller.batches_per_step
        self.is_due = (self._own or by_one) and run.controller.rules.may_change

    def look(self, batch: Any, info: BatchInfo, ranks: int) -> None:
        """Look at a batch.

        Args:
            batch: as it is delivered to this rank.
            info: the same batch, over all ranks.
            ranks: how many there are.
        """
        self.is_due = False
        if self._handle is not None:
            if self._called.shapes:
                self._look_at_the_call()
            else:  # the loop has fetched ahead
                self.is_due = True
        elif self._own:
            self._look_at_the_rows(batch, info, ranks)
        if info.num_samples == ranks and self._first is None and not self._held:
            self._first, self.is_due = batch, True
            handle = self._run.model.register_forward_pre_hook(self._called, with_kwargs=True)
            self._handle = finalize(self, handle.remove)

    def _look_at_the_call(self) -> None:
        """Look at what the model has been called on since the first batch, which is of one sample."""
        self.close()
        if takes_one_apart(self._first, self._called.shapes):
            self._hold(TAKEN_APART)
        self._first = ()  # keep no batch

    def close(self) -> None:
        """Watch the model no longer."""
        if self._handle is not None:
            self._handle()
        self._handle = None

    def _look_at_the_rows(self, batch: Any, info: BatchInfo, ranks: int) -> None:
        samples, size = info.num_samples // ranks, self._run.controller.batch_size
        row_a_sample = has_a_row_a_sample(batch, samples)
        if row_a_sample and samples > 1:
            return
        follows = self._tried(info)
        if follows or (follows is None and row_a_sample):
            return
        size //= self._run.controller.batches_per_step
        if follows is None:
            self._hold(NOT_KNOWN, samples, size)
        else:
            self._hold(HELD, size)

    def _hold(self, warning: str, *values: int) -> None:
        self._held = True
        self._run.controller.holds.doubt(ROWS, warning, *values)

    def _tried(self, info: BatchInfo) -> bool | None:
        """True if `collate_fn` makes more of two samples than of one. None where that cannot be tried."""
        if isinstance(self._dataset, IterableDataset) or not info.indices or self._collate is None:
            return None
        for index in info.indices[:TRIES]:  # the first may be one that collate_fn leaves out, so that nothing is left
            try:
                with preserved(self._run.model):
                    found = collates_all(self._collate, self._dataset[index])
            except Exception as error:  # the user's own code, which may refuse a sample that comes twice
                log.info("collate_fn= does not take sample %s twice: %s", index, error)
            else:
                return found is not False  # a layout of which nothing is known is taken to be right
        return None

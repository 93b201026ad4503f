"""Checks, on the first batch, that a larger batch would hold more: that its rows follow the samples."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch.utils.data import IterableDataset, default_collate

from ..model import collates_all, has_a_row_a_sample, preserved
from ..run import TrainingRun
from ..sampling import BatchInfo

log = logging.getLogger(__name__)

ROWS = "rows do not follow samples"  # reason to hold the batch

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


class RowCheck:
    """Looks at the first batch, and where that does not tell at what `collate_fn` makes of one of its samples twice.

    torch's own collation makes a row of each sample. So does any other if the batch has as many rows as samples, and
    more than one. Else a sample is fetched once more, with all random states put back.

    Args:
        collate: as given to the loader; None: torch's own.
        dataset: the loader's.
        run: the training run, whose batch is held if the rows do not follow.

    Attributes:
        is_due: True until a batch has been looked at.
    """

    def __init__(self, collate: Callable[[list[Any]], Any] | None, dataset: Any, run: TrainingRun) -> None:
        self._collate, self._dataset, self._run = collate, dataset, run
        self.is_due = collate is not None and collate is not default_collate

    def look(self, batch: Any, info: BatchInfo, ranks: int) -> None:
        """Look at a batch.

        Args:
            batch: as it is delivered to this rank.
            info: the same batch, over all ranks.
            ranks: how many there are.
        """
        self.is_due = False
        samples, size = info.num_samples // ranks, self._run.controller.batch_size
        row_a_sample = has_a_row_a_sample(batch, samples)
        if row_a_sample and samples > 1:
            return
        follows = self._tried(info)
        if follows or (follows is None and row_a_sample):
            return
        self._run.controller.holds.add(ROWS)
        size //= self._run.controller.batches_per_step
        if follows is None:
            log.warning(NOT_KNOWN, samples, size)
        else:
            log.warning(HELD, size)

    def _tried(self, info: BatchInfo) -> bool | None:
        """True if `collate_fn` makes more of two samples than of one. None where that cannot be tried."""
        if isinstance(self._dataset, IterableDataset) or not info.indices or self._collate is None:
            return None
        try:
            with preserved(self._run.model):
                found = collates_all(self._collate, self._dataset[info.indices[0]])
        except Exception as error:  # the user's own code, which may refuse a sample that comes twice
            log.info("collate_fn= does not take a sample twice, so whether rows follow samples is not known: %s", error)
            return None
        return found is not False  # a layout of which nothing is known is taken to be right

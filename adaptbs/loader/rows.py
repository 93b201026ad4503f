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
        samples = info.num_samples // ranks
        row_a_sample = has_a_row_a_sample(batch, samples)
        if (row_a_sample and samples > 1) or self._follow(info, row_a_sample):
            return
        self._run.controller.holds.add(ROWS)
        log.warning(HELD, self._run.controller.batch_size // self._run.controller.batches_per_step)

    def _follow(self, info: BatchInfo, row_a_sample: bool) -> bool:
        """False if it is known that the rows do not follow the samples, or if there is no way to know."""
        if isinstance(self._dataset, IterableDataset) or not info.indices or self._collate is None:
            return row_a_sample
        try:
            with preserved(self._run.model):
                found = collates_all(self._collate, self._dataset[info.indices[0]])
        except Exception as error:  # the user's own code, which may take a list of other lengths only
            log.info("collate_fn= does not take a sample twice, so whether rows follow samples is not known: %s", error)
            return row_a_sample
        return found is not False

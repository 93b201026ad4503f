"""Reasons why a noise scale that `bs_find` measures is not that of samples."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..gradients import Coupling, is_far
from ..model import BatchLoss, batch_length
from ..types import COUPLED


class FinderDoubts:
    """Looks at batches, as a training run does, for a loss that couples samples and for rows that are not samples.

    Args:
        model: the model.
        loss: the loss of a batch.
        samples: samples of a batch of the loader; None: not known.
    """

    def __init__(self, model: nn.Module, loss: BatchLoss, samples: int | None) -> None:
        self._coupling, self._samples = Coupling(model, loss), samples
        self._rows: int | None = None  # of the first batch, which is no epoch's last

    def look(self, batch: Any) -> None:
        """Look at a batch; it costs two passes for the first few."""
        self._rows = batch_length(batch) if self._rows is None else self._rows
        self._coupling.look(batch)

    @property
    def reason(self) -> str | None:
        """The reason; None if there is none."""
        if self._coupling.found:
            return COUPLED
        if self._samples is not None and self._rows is not None and is_far(self._rows, self._samples):
            return f"{self._rows} rows of {self._samples} samples"
        return None


def samples_of(loader: Any, name: str = "batch_size") -> int | None:
    """Samples of a loader's batches but for its last; None where that is not known.

    Args:
        loader: any iterable of batches.
        name: of the attribute that says it.
    """
    size = getattr(loader, name, None)
    try:
        several = len(loader) > 1
    except TypeError:  # a stream
        several = True
    return size if isinstance(size, int) and several else None

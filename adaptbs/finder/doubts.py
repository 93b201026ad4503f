"""Reasons to doubt the noise scale that `bs_find` measures."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..gradients import Coupling, is_far
from ..model import BatchLoss, batch_length, length_of
from ..types import COUPLED


class FinderDoubts:
    """Examines batches for a loss that couples samples, and for rows that are not samples, as a training run does.

    Args:
        model: the model.
        loss: the loss of a batch.
        samples: samples of a batch of the loader. None: not known.
    """

    def __init__(self, model: nn.Module, loss: BatchLoss, samples: int | None) -> None:
        self._coupling, self._samples = Coupling(model, loss), samples
        self._rows: int | None = None  # rows of the first batch, which is not an epoch's last

    def look(self, batch: Any) -> None:
        """Examine a batch. The first few cost two passes each."""
        self._rows = batch_length(batch) if self._rows is None else self._rows
        self._coupling.look(batch)

    @property
    def reason(self) -> str | None:
        """The reason to doubt the noise scale; None if there is none."""
        if self._coupling.found:
            return COUPLED
        if self._samples is not None and self._rows is not None and is_far(self._rows, self._samples):
            return f"{self._rows} rows of {self._samples} samples"
        return None


def samples_of(loader: Any, name: str = "batch_size") -> int | None:
    """Samples of a loader's batches except the last; None if not known.

    Args:
        loader: any iterable of batches.
        name: name of the loader's attribute that holds the batch size.
    """
    size, batches = getattr(loader, name, None), length_of(loader)
    several = batches is None or batches > 1
    return size if isinstance(size, int) and several else None

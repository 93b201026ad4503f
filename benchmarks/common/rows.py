"""A dataset of tensors that is cut a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Rows(Dataset[Any]):
    """Tensors of equal length on one device: torch's fetcher asks `__getitems__` for all rows of a batch."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(t[index] for t in self.tensors)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        rows = torch.tensor(indices)
        if self.tensors[0].is_cuda:  # pinned, so that the copy of the indices is not waited for
            rows = rows.pin_memory().to(self.tensors[0].device, non_blocking=True)
        return tuple(t[rows] for t in self.tensors)

"""A batch between the cut and the loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class BatchInfo(NamedTuple):
    """A batch on its way.

    Attributes:
        cut_size: the size in force when it was cut, samples of an optimizer step.
        num_samples: the samples that it really holds, those of all ranks together.
        ends_step: whether it is the last of an optimizer step.
        indices: the indices of its samples, of all ranks, as far as they are known.
    """

    cut_size: int
    num_samples: int
    ends_step: bool = True
    indices: Sequence[Any] = ()

    @property
    def cut(self) -> list[Any]:
        """All but the indices."""
        return [self.cut_size, self.num_samples, self.ends_step]

"""A batch that has been cut and not been delivered to the loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class BatchInfo(NamedTuple):
    """A batch that has been cut.

    Attributes:
        cut_size: the size in force when it was cut, samples of an optimizer step.
        num_samples: the samples that it really holds, on all ranks together.
        ends_step: True if it is the last batch of an optimizer step.
        indices: the indices of its samples on all ranks, if they are known.
    """

    cut_size: int
    num_samples: int
    ends_step: bool = True
    indices: Sequence[Any] = ()

    @property
    def cut(self) -> list[Any]:
        """All but the indices."""
        return [self.cut_size, self.num_samples, self.ends_step]

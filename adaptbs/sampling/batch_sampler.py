"""A batch sampler whose size may change at any step, which knows what it has issued and can go on in mid-epoch."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch.utils.data import Sampler

from ..ranks import ALONE, Ranks
from .batch_info import BatchInfo
from .draw import Rest
from .pass_cut import PassCut

log = logging.getLogger(__name__)


class AdaptiveBatchSampler(Sampler[list[int]]):
    """Cuts a sampler's indices into batches, asking for the size anew at each optimizer step.

    Workers fetch ahead, so a size asked for now is delivered some batches later. `issued` is the queue between the
    two: whoever delivers a batch pops the left end to know which size it was cut at.

    Args:
        sampler: yields indices, has a length. What it yields is delivered, whatever the length says, by which a run
            is planned.
        size: returns the size of the next step, samples.
        start: samples of a batch that the run began with, over all ranks. It fixes what a pass is: with `drop_last`,
            as many samples as a stock sampler of that size delivers; and how short the last batch may be.
        drop_last: as in DataLoader.
        batches_per_step: batches of an optimizer step, on each rank.
        ranks: the ranks that each yield their share of every batch.
        row_multiple: whole multiples of which batches are cut in, samples.
        tail_rows: how many samples at a pass's end are cut on their own, being of another kind.

    Attributes:
        first: `start`.
        least: samples that make another batch at a pass's end.
        issued: the queue of the latest iteration.
    """

    def __init__(
        self,
        sampler: Iterable[int],
        size: Callable[[], int],
        start: int,
        drop_last: bool,
        batches_per_step: int = 1,
        ranks: Ranks = ALONE,
        row_multiple: int = 1,
        tail_rows: int = 0,
    ) -> None:
        self.sampler, self.drop_last, self.batches_per_step, self.ranks = sampler, drop_last, batches_per_step, ranks
        self.row_multiple, self.tail_rows = row_multiple, tail_rows
        self.size, self.first, self.least = size, start, start if drop_last else 1
        self._few: Callable[[], bool] = bool  # False
        self._next: PassCut | None = None  # for iterations that begin now
        self._warned = False  # of a wrong length
        self.issued: deque[BatchInfo] = deque()

    @property
    def pass_samples(self) -> int:
        """How many samples a pass delivers, by the sampler's length."""
        n = len(self.sampler)  # type: ignore[arg-type]
        return n - n % self.first if self.drop_last else n

    @property
    def shortest_tail(self) -> int:
        """The length of a stock sampler's last batch: ours is not shorter (one sample alone breaks BatchNorm)."""
        return self.pass_samples % self.first or self.first

    @property
    def is_alone(self) -> bool:
        """True if every batch is an optimizer step of one process, and may be of any length."""
        return self.batches_per_step * self.ranks.world_size * self.row_multiple == 1 and not self.tail_rows

    def __iter__(self) -> Iterator[list[int]]:
        # A plain method, so that each iteration has its queue before workers begin to fetch.
        cut = self.new_pass() if self._next is None else self._next
        self.issued = cut.issued
        return cut.batches()

    def new_pass(self, rest: Rest | None = None, after: PassCut | None = None) -> PassCut:
        """A pass over the data; see PassCut."""
        return PassCut(self, rest, after)

    @contextmanager
    def over(self, cut: PassCut) -> Iterator[None]:
        """Let the iteration that begins meanwhile be over this pass."""
        self._next = cut
        try:
            yield
        finally:
            self._next = None

    def follow(self, size: Callable[[], int], few: Callable[[], bool] = bool) -> None:
        """Ask this for the size of the next step from here on.

        Args:
            size: returns it, samples.
            few: returns True if batches are to have few sizes. What is left of a pass is then cut at halves of the
                size, quarters, and so on, down to what the run began with.
        """
        self.size, self._few = size, few

    def fitting(self, size: int, left: int) -> int:
        """The size of the next step, which is to be `size`, where so many samples of the pass are left."""
        if size > left and self._few():
            while size > left and size % 2 == 0 and size // 2 >= self.first * self.batches_per_step:
                size //= 2
        return size

    def compare_length(self, samples: int, length: int | None) -> None:
        """Warn, once, where a pass has had another number of samples than the sampler said when it began.

        Args:
            samples: those of the pass.
            length: the sampler's length then; None: it is the same now.
        """
        length = len(self.sampler) if length is None else length  # type: ignore[arg-type]
        if samples == length or self._warned:
            return
        self._warned = True
        log.warning(
            "sampler= has yielded %d indices in one pass, but its len() is %d: all of them are delivered, but the run "
            "is paced by len()%s. Give the sampler a __len__ that says how many indices it yields.",
            samples, length, ", and ends after its epochs, not by its progress" if samples > length else "",
        )  # fmt: skip

    def __len__(self) -> int:
        left, size, steps = self.pass_samples, self.size(), 0
        while left >= size and self._few():
            steps, left = steps + left // size, left % size
            size = self.fitting(size, left)
        return steps * self.batches_per_step - (-left * self.batches_per_step // size)

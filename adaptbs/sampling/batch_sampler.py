"""A batch sampler whose size may change at any step. It records its batches and can resume within an epoch."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch.utils.data import Sampler

from ..ranks import ALONE, Ranks
from .batch_info import BatchInfo
from .draw import Rest
from .pass_cut import MANY, PassCut

log = logging.getLogger(__name__)

AT_LEAST = 1 << 12  # indices that a sampler yields before it is said to have no end
NO_END = (
    "sampler= has yielded %d indices in one pass and goes on, though its len() is %d. All of them are delivered, but a "
    "pass without an end is an epoch without one: the run goes on past its length, and len(loader) is not known. Let "
    "it end after len() indices, and the loop begin anew at StopIteration; or end the loop when loader.progress is 1."
)


def never() -> bool:
    """False."""
    return False


class AdaptiveBatchSampler(Sampler[list[int]]):
    """Cuts a sampler's indices into batches, asking for the size anew at each optimizer step.

    Workers fetch ahead, so a batch is delivered some batches after it was cut. `issued` is the queue between the two:
    whoever delivers a batch pops the left end to learn at which size it was cut.

    Args:
        sampler: yields indices, and has a length. All that it yields is delivered. The length is used to plan the run.
        size: returns the size of the next step, samples.
        start: size of the run's first batches, samples over all ranks. With `drop_last` a pass has as many samples as a
            stock sampler of this size delivers. The last batch is not shorter than that of such a sampler.
        drop_last: as in DataLoader.
        batches_per_step: batches of an optimizer step, on each rank.
        ranks: the ranks. Each yields its share of every batch.
        row_multiple: the length of each batch is a multiple of this, samples.
        tail_rows: samples at the end of a pass that are cut on their own, because they are of another kind.

    Attributes:
        first: `start`.
        least: fewest samples that make another batch at a pass's end.
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
        self._halves_the_rest: Callable[[], bool] = never
        self._next: PassCut | None = None  # for iterations that begin now
        self._warned = False  # True once a wrong length has been reported
        self.issued: deque[BatchInfo] = deque()

    @property
    def batch_size(self) -> int:
        """The size of the batches that are cut now, samples of a rank; a stock batch sampler has it too."""
        return self.size() // (self.batches_per_step * self.ranks.world_size)

    @property
    def pass_samples(self) -> int:
        """The number of samples that a pass delivers, by the sampler's length."""
        n = len(self.sampler)  # type: ignore[arg-type]
        return n - n % self.first if self.drop_last else n

    @property
    def shortest_tail(self) -> int:
        """The length of a stock sampler's last batch. Ours is not shorter, since BatchNorm fails on one sample."""
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
        """Begin a pass over the data. The arguments are those of PassCut."""
        return PassCut(self, rest, after)

    @contextmanager
    def over(self, cut: PassCut) -> Iterator[None]:
        """A context: an iteration that begins inside it is over this pass."""
        self._next = cut
        try:
            yield
        finally:
            self._next = None

    def follow(self, size: Callable[[], int], halves_the_rest: Callable[[], bool] = never) -> None:
        """Ask these functions for the sizes of steps from here on.

        Args:
            size: returns the size of the next step, samples.
            halves_the_rest: returns True if batches should have few different sizes. Then the rest of a pass is cut at
                a half of the size, a quarter, and so on, down to the size that the run began with.
        """
        self.size, self._halves_the_rest = size, halves_the_rest

    def fitting(self, size: int, left: int) -> int:
        """The size of the next step, given the wanted size and the samples that are left of the pass.

        No more than a whole pass has, as of a dataset that has become smaller: hyperparameters go by it.
        """
        size = min(size, max(self.pass_samples, self.first * self.batches_per_step))
        if size > left and self._halves_the_rest():
            while size > left and size % 2 == 0 and size // 2 >= self.first * self.batches_per_step:
                size //= 2
        return size

    def compare_length(self, samples: int, length: int | None) -> None:
        """Warn, once, if the number of samples of a pass is not the sampler's length.

        Args:
            samples: samples of the pass.
            length: the sampler's length when the pass began. None: its present length.
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

    def warn_of_no_end(self, samples: int, length: int | None) -> None:
        """Warn, once, if a pass goes on for so long that it seems to have no end. The arguments are as above."""
        length = len(self.sampler) if length is None else length  # type: ignore[arg-type]
        if not self._warned and samples >= max(MANY * length, AT_LEAST):
            self._warned = True
            log.warning(NO_END, samples, length)

    def __len__(self) -> int:
        return self.new_pass().left[0]

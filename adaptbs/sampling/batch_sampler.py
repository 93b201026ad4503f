"""A batch sampler whose size may change at any step, which knows what it has issued and can go on in mid-epoch."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

from torch.utils.data import Sampler

from ..ranks import ALONE, Ranks
from .batch_info import BatchInfo
from .count import CountsBatches
from .draw import Draw, Rest, draw, kept, written
from .order import next_length

log = logging.getLogger(__name__)


class AdaptiveBatchSampler(Sampler[list[int]]):
    """Cuts a sampler's indices into batches, asking for the size anew at each optimizer step.

    Workers fetch ahead, so a size asked for now is delivered some batches later. `issued` is the queue between the
    two: whoever delivers a batch pops the left end to know which size it was cut at.

    Args:
        sampler: yields indices, has a length. What it yields is delivered, whatever the length says, by which a run
            is planned.
        size: returns the size of the next step, samples.
        start: samples of a batch that the run began with, over all ranks. It fixes what an epoch is: with `drop_last`,
            as many samples as a stock sampler of that size delivers; and how short the last batch may be.
        drop_last: as in DataLoader.
        batches_per_step: batches of an optimizer step, on each rank.
        ranks: the ranks that each yield their share of every batch.
        row_multiple: whole multiples of which batches are cut in, samples.
        tail_rows: how many samples at an epoch's end are cut on their own, being of another kind.

    Attributes:
        first: `start`.
        least: samples that make another batch at an epoch's end.
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
        self._rest: Rest | None = None  # of an epoch, for iterations that begin now to go on from
        self._warned = False  # of a wrong length
        self.issued: deque[BatchInfo] = deque()
        self._begun: list[EpochCut] | None = None  # kept only for who waits for them: they refer to this sampler

    @property
    def epoch_samples(self) -> int:
        """How many samples an epoch delivers, by the sampler's length."""
        n = len(self.sampler)  # type: ignore[arg-type]
        return n - n % self.first if self.drop_last else n

    @property
    def shortest_tail(self) -> int:
        """The length of a stock sampler's last batch: ours is not shorter (one sample alone breaks BatchNorm)."""
        return self.epoch_samples % self.first or self.first

    @property
    def is_alone(self) -> bool:
        """True if every batch is an optimizer step of one process, and may be of any length."""
        return self.batches_per_step * self.ranks.world_size * self.row_multiple == 1 and not self.tail_rows

    def __iter__(self) -> Iterator[list[int]]:
        # A plain method, so that each iteration has its queue before workers begin to fetch.
        cut = self._new_cut()
        self.issued = cut.issued
        if self._begun is not None:
            self._begun.append(cut)
        return cut.batches()

    @contextmanager
    def going_on_from(self, rest: Rest | None) -> Iterator[list[EpochCut]]:
        """Let the iteration that begins meanwhile go on from the rest of an epoch, if any. Yields those that begin."""
        self._rest, self._begun = rest, []
        try:
            yield self._begun
        finally:
            self._rest = self._begun = None

    def follow(self, size: Callable[[], int]) -> None:
        """Ask this for the size of the next step from here on."""
        self.size = size

    def compare_length(self, samples: int) -> None:
        """Warn, once, where an epoch has had another number of samples than the sampler's length says."""
        length = len(self.sampler)  # type: ignore[arg-type]
        if samples == length or self._warned:
            return
        self._warned = True
        log.warning(
            "sampler= has yielded %d indices in an epoch, but its len() is %d: all of them are delivered, but the run "
            "is paced by len()%s. Give the sampler a __len__ that says how many indices it yields.",
            samples, length, ", and ends after its epochs, not by its progress" if samples > length else "",
        )  # fmt: skip

    def _new_cut(self) -> EpochCut:
        return EpochCut(self, self._rest)

    def __len__(self) -> int:
        return -(-self.epoch_samples * self.batches_per_step // self.size())


class EpochCut(CountsBatches):
    """One epoch's indices, being cut into batches.

    Args:
        sampler: the sampler that is iterated.
        rest: the rest of an epoch to go on from; None: a whole one.

    Attributes:
        issued: batches that have been cut and not been delivered, oldest first.
        is_beyond: True once more samples have been cut than the sampler's length says.
        is_new: tells whether a fetched batch is to be delivered; None where all are.
    """

    _sampler: AdaptiveBatchSampler
    is_new: Callable[[Any], bool] | None = None

    def __init__(self, sampler: AdaptiveBatchSampler, rest: Rest | None = None) -> None:
        self._sampler, self._rest = sampler, rest
        self._draw = Draw(iter(()))
        self.count = 0
        self.issued: deque[BatchInfo] = deque()
        self._indices: Iterator[int] = iter(())
        self._ahead: list[int] = []  # indices read beyond the sampler's length and not cut
        self._left = 0  # samples of the epoch that have not been cut, by the sampler's length
        self._cut, self.is_beyond = 0, False  # samples that have been cut
        self._cut_size = 0  # of the step being cut, samples
        self._batch = 0  # batches of it that have been cut
        self._step_left = 0  # samples of it that have not been cut; 0 where its batches are cut one by one

    @property
    def queue(self) -> deque[BatchInfo]:
        """The batches that the loop has not begun, oldest first."""
        return self.issued

    def batches(self) -> Iterator[list[int]]:
        """Lists of indices."""
        # A stock loader, too, begins to draw when the first batch is asked for.
        if self._rest is None:
            self._draw, self._left = draw(self._sampler.sampler), self._sampler.epoch_samples
            self._indices = self._draw.indices
        else:
            yield from self._go_on(self._rest)
        sampler, shortest_tail, alone = self._sampler, self._sampler.shortest_tail, self._sampler.is_alone
        while self._left:
            if not self._batch:
                self._cut_size = sampler.size()
            if alone and self._left >= 2 * self._cut_size:  # nearly all batches; each function called here costs
                length = self._cut_size
                batch = list(islice(self._indices, length))
            else:
                if self._is_last and self._goes_on():
                    break
                length = self._length(shortest_tail)
                batch = list(islice(self._indices, length))
                self._batch = (self._batch + 1) % sampler.batches_per_step
            self._left -= length
            if len(batch) < length:
                batch = self._sampler_ended(batch)
            if not batch:
                break
            self._cut += len(batch)
            self.issued.append(BatchInfo(self._cut_size, len(batch), not self._batch, batch))
            self.count += 1
            yield batch if alone else sampler.ranks.mine(batch)
        yield from self._beyond()
        sampler.compare_length(self._cut + len(self._ahead))

    @property
    def _is_last(self) -> bool:
        """True where no step is cut after this one, by the sampler's length."""
        size = self._cut_size // self._sampler.batches_per_step if self._batch else self._cut_size
        return self._left <= size and not self._step_left and not self._sampler.drop_last

    def _goes_on(self) -> bool:
        """Look, before the last step is cut, whether the sampler yields more: then it is to be no short one."""
        self._ahead = list(islice(self._indices, self._left + 1))
        if len(self._ahead) > self._left:
            self._left = 0
            return True
        self._indices, self._ahead = iter(self._ahead), []
        return False

    def _sampler_ended(self, batch: list[int]) -> list[int]:
        """Take note that the sampler has ended early. Return what is delivered of its last indices."""
        self._left, whole = 0, self._whole(len(batch))
        batch, self._ahead = batch[:whole], batch[whole:]
        return batch

    def _whole(self, samples: int) -> int:
        """How many of the last samples are delivered: with `drop_last` a stock sampler's batches have to be whole."""
        sampler = self._sampler
        return max(samples - (self._cut + samples) % sampler.first, 0) if sampler.drop_last else samples

    def look_beyond(self) -> bool:
        """Look whether there are samples beyond the sampler's length, once it has come to that."""
        return self.is_beyond or (not self._left and self._read_ahead(self._sampler.least) > 0)

    def _read_ahead(self, samples: int) -> int:
        """Read indices until there are so many that have not been cut. Return how many there are to deliver."""
        # A stock loader asks once more too at an epoch's end: RandomSampler draws then.
        self._ahead += islice(self._indices, max(samples - len(self._ahead), 0))
        found = len(self._ahead)
        return found if found >= samples else self._whole(found)

    def _beyond(self) -> Iterator[list[int]]:
        """Cut what the sampler yields beyond its length. How much that is shows only when it ends."""
        sampler = self._sampler
        while self._read_ahead(self._sampler.least):
            if not self._batch:
                self._cut_size = sampler.size()
            # So many that the last step can be cut with regard to the tail that it leaves.
            self._left = self._read_ahead(2 * max(self._cut_size, sampler.first * sampler.batches_per_step))
            length = self._length((self._cut + self._left) % sampler.first or sampler.first)
            self._left, self._batch = 0, (self._batch + 1) % sampler.batches_per_step
            batch, self._ahead = self._ahead[:length], self._ahead[length:]
            if not batch:
                return
            self._cut += len(batch)
            self.is_beyond = self._cut > sampler.epoch_samples
            yield self._issue(BatchInfo(self._cut_size, len(batch), not self._batch, batch))

    def _issue(self, info: BatchInfo) -> list[int]:
        self.issued.append(info)
        self.count += 1
        return self._sampler.ranks.mine(list(info.indices))

    def _length(self, shortest_tail: int) -> int:
        """Samples of the next batch, over all ranks."""
        per_step, n = self._sampler.batches_per_step, self._sampler.ranks.world_size
        if not self._batch:
            self._step_left = self._whole_step(shortest_tail)
        # Equally many for each rank: who has none, or makes a step less, lets the others wait for ever.
        if self._step_left:
            length = n * -(-self._step_left // n // (per_step - self._batch))
            self._step_left -= length
            return length
        ahead = self._left - self._sampler.tail_rows if self._left > self._sampler.tail_rows else self._left
        unit = n * self._sampler.row_multiple
        return unit * next_length(self._cut_size // per_step // unit, ahead // unit, shortest_tail // unit)

    def _whole_step(self, shortest_tail: int) -> int:
        """Samples of a step that has to be whole, or 0 where it is cut as a stock sampler would.

        A loop takes no step with what an epoch's end leaves of one. Growth must not make it lose more in that way.
        """
        per_step, first = self._sampler.batches_per_step, self._sampler.first
        if per_step == 1 or self._cut_size == first * per_step or self._left < per_step * shortest_tail:
            return 0
        n = self._sampler.ranks.world_size
        return n * next_length(self._cut_size // n, self._left // n, per_step * shortest_tail // n)

    def _go_on(self, rest: Rest) -> Iterator[list[int]]:
        state = rest.state
        self._left, self._cut_size = state["left"], state["cut_size"]
        self._batch, self._step_left, self._cut = state["batch"], state["step_left"], state["cut"]
        self.is_beyond = self._cut > self._sampler.epoch_samples
        self._draw = rest.draw or self._draw
        self._indices = self._draw.indices
        for cut_size, num_samples, ends_step in state["issued"]:
            yield self._issue(BatchInfo(cut_size, num_samples, ends_step, list(islice(self._indices, num_samples))))

    def state_dict(self) -> dict[str, Any]:
        """The place in the epoch, and a recipe to draw its indices again.

        If the sampler cannot draw them again it is read to its end, which it would be sooner or later. All indices that
        have not been delivered are saved then: a tensor, or a list where they are no integers.
        """
        position = self._cut - sum(issued.num_samples for issued in self.issued)
        if not self._draw.can_be_saved:
            pending = [*chain.from_iterable(issued.indices for issued in self.issued), *self._ahead]
            self._draw = kept(written(chain(pending, self._indices)), position, position + len(pending))
            self._indices = self._draw.indices
        return {
            "order": self._draw.state_dict(position), "issued": [issued.cut for issued in self.issued],
            "left": self._left, "cut": self._cut, "cut_size": self._cut_size,
            "batch": self._batch, "step_left": self._step_left,
        }  # fmt: skip

"""One pass over the data, which is cut into batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, Protocol

from torch import Tensor

from ..ranks import Ranks
from .batch_info import BatchInfo
from .count import CountsBatches, Sizes
from .draw import Draw, Rest, draw, draw_kept, in_chunks, read_all
from .order import next_length


class CutsBy(Sizes, Protocol):
    """The part of a batch sampler that decides how a pass is cut; see AdaptiveBatchSampler."""

    sampler: Any
    drop_last: bool
    least: int
    ranks: Ranks
    row_multiple: int
    tail_rows: int

    @property
    def pass_samples(self) -> int: ...

    @property
    def is_alone(self) -> bool: ...

    def compare_length(self, samples: int, length: int | None) -> None: ...

    def warn_of_no_end(self, samples: int, length: int | None) -> None: ...


MANY = 4  # times its len(): a sampler that yields so many indices and goes on seems to have no end
MOST = 1 << 17  # fewest indices that are read before such a sampler is not read further
ENDLESS = (
    "the order of sampler= cannot be saved: the %s yields more than %d indices in one pass, though its len() is "
    "%d. Let it end after len() indices, and the loop begin anew at StopIteration; then state_dict() saves the rest"
)


class PassCut(CountsBatches):
    """One pass over the data, each sample once, which is cut into batches.

    An epoch may end within a pass. The next epoch continues the pass: another iteration over the same PassCut begins
    with the batches that were cut and not begun, for example because workers had fetched ahead.

    Args:
        sampler: the batch sampler that is iterated.
        rest: the rest of a saved pass. None: a whole pass.
        after: the pass that this one follows within an epoch. They share a queue, and this one continues the optimizer
            step that was being cut.

    Attributes:
        is_beyond: True once more samples have been cut than the sampler's length says.
        is_new: matches a fetched batch with its request, and returns True if it is to be delivered. None: all are.
    """

    _sampler: CutsBy
    is_new: Callable[[Any], bool] | None = None

    def __init__(self, sampler: CutsBy, rest: Rest | None = None, after: PassCut | None = None) -> None:
        self._sampler = sampler
        self._draw = Draw(iter(()))
        self._is_drawn = False
        self.count = 0
        self.issued: deque[BatchInfo] = deque() if after is None else after.issued
        self._indices: Iterator[int] = iter(())
        self._ahead: list[int] = []  # indices read beyond the sampler's length and not cut
        self._left = 0  # samples of the pass that have not been cut, by the sampler's length
        self._cut, self.is_beyond = 0, False  # samples that have been cut
        self._said: int | None = None  # the sampler's length when the pass began; None for a saved pass
        self._cut_size = 0 if after is None else after._cut_size  # of the step being cut, samples
        self._batch = 0 if after is None else after._batch  # batches of it that have been cut
        self._step_left = 0  # samples of it that have not been cut; 0 where its batches are cut one by one
        if rest is not None:
            self._resume(rest)

    @property
    def queue(self) -> deque[BatchInfo]:
        """The batches that the loop has not begun, oldest first."""
        return self.issued

    def batches(self) -> Iterator[list[int]]:
        """Cut batches, as lists of indices."""
        # Like a stock loader, draw when the first batch is asked for.
        if not self._is_drawn:
            self._is_drawn = True
            self._draw, self._left = draw(self._sampler.sampler), self._sampler.pass_samples
            self._said = len(self._sampler.sampler)  # which may be another by the end of the pass
            self._indices = self._draw.indices
        for info in tuple(self.issued) if self.count else ():
            yield self._sampler.ranks.mine(list(info.indices))
        sampler, shortest_tail, alone = self._sampler, self._sampler.shortest_tail, self._sampler.is_alone
        issue, new, size = self.issued.append, tuple.__new__, self._cut_size
        while left := self._left:
            if not self._batch:
                self._cut_size = size = sampler.size()
                if size > left:
                    self._cut_size = sampler.fitting(size, left)
            if alone and left >= 2 * size:  # nearly all batches; each function called here costs
                length, ends_step = size, True
                batch = list(islice(self._indices, length))
            else:
                if self._is_last and self._sampler_goes_on():
                    break
                length = self._length(shortest_tail)
                batch = list(islice(self._indices, length))
                self._batch = (self._batch + 1) % sampler.batches_per_step
                ends_step = not self._batch
            self._left = left - length
            if (found := len(batch)) < length:
                batch = self._sampler_ended(batch)
                if not (found := len(batch)):
                    break
            self._cut += found
            # A named tuple's own constructor is a Python function, so it takes longer than tuple.__new__.
            issue(new(BatchInfo, (self._cut_size, found, ends_step, batch)))
            self.count += 1
            yield batch if alone else sampler.ranks.mine(batch)
        yield from self._beyond()
        sampler.compare_length(self._cut + len(self._ahead), self._said)

    @property
    def _is_last(self) -> bool:
        """True if this step is the last, by the sampler's length."""
        size = self._cut_size // self._sampler.batches_per_step if self._batch else self._cut_size
        return self._left <= size and not self._step_left and not self._sampler.drop_last

    def _sampler_goes_on(self) -> bool:
        """Before the last step, see if the sampler yields more than its length says. Then this step is no short one."""
        self._ahead = list(islice(self._indices, self._left + 1))
        if len(self._ahead) > self._left:
            self._left = 0
            return True
        self._indices, self._ahead = iter(self._ahead), []
        return False

    def _sampler_ended(self, batch: list[int]) -> list[int]:
        """Handle a sampler that has ended early. Return those of its last indices that are delivered."""
        self._left, whole = 0, self._deliverable(len(batch))
        batch, self._ahead = batch[:whole], batch[whole:]
        return batch

    def _deliverable(self, samples: int) -> int:
        """Number of the last samples that are delivered. With `drop_last` only whole batches of a stock sampler are."""
        sampler = self._sampler
        return max(samples - (self._cut + samples) % sampler.first, 0) if sampler.drop_last else samples

    def look_beyond(self) -> bool:
        """See if there are samples beyond the sampler's length, once that many have been cut."""
        return self.is_beyond or (not self._left and self._read_ahead(self._sampler.least) > 0)

    def _read_ahead(self, samples: int) -> int:
        """Read indices until `samples` of them have not been cut. Return the number to deliver."""
        # A stock loader, too, asks once more at an epoch's end: RandomSampler draws then.
        self._ahead += islice(self._indices, max(samples - len(self._ahead), 0))
        found = len(self._ahead)
        return found if found >= samples else self._deliverable(found)

    def _beyond(self) -> Iterator[list[int]]:
        """Cut the indices that the sampler yields beyond its length. Their number is known only when it ends."""
        sampler = self._sampler
        while self._read_ahead(self._sampler.least):
            if not self._batch:
                self._cut_size = sampler.size()
            # Enough indices to see which tail the next step leaves.
            self._left = self._read_ahead(2 * max(self._cut_size, sampler.first * sampler.batches_per_step))
            length = self._length((self._cut + self._left) % sampler.first or sampler.first)
            self._left, self._batch = 0, (self._batch + 1) % sampler.batches_per_step
            batch, self._ahead = self._ahead[:length], self._ahead[length:]
            if not batch:
                return
            self._cut += len(batch)
            self.is_beyond = self._cut > sampler.pass_samples
            sampler.warn_of_no_end(self._cut, self._said)
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
        # Equally many for each rank: a rank that has none, or makes a step less, makes the others wait for ever.
        if self._step_left:
            length = n * -(-self._step_left // n // (per_step - self._batch))
            self._step_left -= length
            return length
        ahead = self._left - self._sampler.tail_rows if self._left > self._sampler.tail_rows else self._left
        unit = n * self._sampler.row_multiple
        return unit * next_length(self._cut_size // per_step // unit, ahead // unit, shortest_tail // unit)

    def _whole_step(self, shortest_tail: int) -> int:
        """Samples of a step that must be whole, or 0 if it is cut as by a stock sampler.

        A loop loses the batches of an unfinished step at an epoch's end. Growth must not make it lose more than before.
        """
        per_step, first = self._sampler.batches_per_step, self._sampler.first
        if per_step == 1 or self._cut_size == first * per_step or self._left < per_step * shortest_tail:
            return 0
        n = self._sampler.ranks.world_size
        return n * next_length(self._cut_size // n, self._left // n, per_step * shortest_tail // n)

    def _resume(self, rest: Rest) -> None:
        state = rest.state
        self._left, self._cut_size = state["left"], state["cut_size"]
        self._batch, self._step_left, self._cut = state["batch"], state["step_left"], state["cut"]
        self.is_beyond = self._cut > self._sampler.pass_samples
        self._is_drawn, self._draw = True, rest.draw or self._draw
        self._indices = self._draw.indices
        for cut_size, num_samples, ends_step in state["issued"]:
            indices = list(islice(self._indices, num_samples))
            self.issued.append(BatchInfo(cut_size, num_samples, ends_step, indices))
        self.count = len(self.issued)

    @property
    def is_at_its_end(self) -> bool:
        """True if nothing is left to be delivered, by the sampler's length."""
        return self._is_drawn and not self._left and not self.issued

    def state_dict(self) -> dict[str, Any]:
        """The place in the pass, and a recipe to draw its indices again.

        If the sampler cannot draw them again, it is read to its end here. Then all indices that have not been delivered
        are saved, as a tensor, or as a list if they are not all integers.

        Raises:
            RuntimeError: if it has to be read and has no end. It goes on as before.
        """
        position = self._cut - sum(issued.num_samples for issued in self.issued)
        if not self._draw.can_be_saved:
            pending = [*chain.from_iterable(issued.indices for issued in self.issued), *self._ahead]
            self._draw = draw_kept(self._read_rest(pending), position, position + len(pending))
            self._indices = self._draw.indices
        return {
            "order": self._draw.state_dict(position), "issued": [issued.cut for issued in self.issued],
            "left": self._left, "cut": self._cut, "cut_size": self._cut_size,
            "batch": self._batch, "step_left": self._step_left,
        }  # fmt: skip

    def _read_rest(self, pending: list[Any]) -> list[Any] | Tensor:
        """The indices that are pending, and those that the sampler is read for."""
        said = len(self._sampler.sampler) if self._said is None else self._said
        most = max(MANY * said, MOST)
        order = read_all(chain(pending, islice(self._indices, most)))
        if rest := list(islice(self._indices, 1)):
            self._indices = chain(in_chunks(order, len(pending)), rest, self._indices)
            raise RuntimeError(ENDLESS % (type(self._sampler.sampler).__name__, most, said))
        return order


class NoBatches(PassCut):
    """A pass that delivers nothing."""

    def batches(self) -> Iterator[list[int]]:
        return iter(())

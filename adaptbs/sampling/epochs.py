"""From a dataset and its order to batches of changing size, pass by pass, and what is left of a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Generator
from torch.utils.data import IterableDataset

from ..ranks import ALONE, Ranks
from .draw import Rest, redraw
from .epoch_passes import EpochPasses
from .order import indices, number_pass
from .own import OwnBatchSampler, OwnStreamSampler
from .pass_cut import PassCut
from .ranks import SharedSampler

APART = 0x5EED  # turns one seed into another


class EpochSource:
    """The batch sampler behind a DataLoader whose batch changes, and the iterations over it.

    An iteration delivers an epoch. An epoch is a pass over the data, or a share of the run's progress: then it goes on
    with what the one before has left of its pass, and may begin further passes.

    Args:
        dataset, batch_size, shuffle, sampler, drop_last, generator, num_workers, persistent_workers: as of a
            DataLoader.
        batches_per_step: batches of an optimizer step, on each rank.
        ranks: the ranks that share every batch; `batch_size` is that of each.

    Attributes:
        batch_sampler: the one to give to a DataLoader, or to put in the place of its own where the dataset `streams`.
        order: yields the indices; a stand-in where the dataset has none.
        streams: whether the dataset is an IterableDataset.
        delivering: the epoch that has delivered last, of those under way.
        latest: the same, also when it is over.
        passes: number of passes begun in this run.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        shuffle: bool | None,
        sampler: Any,
        drop_last: bool,
        generator: Generator | None,
        batches_per_step: int,
        ranks: Ranks = ALONE,
        num_workers: int = 0,
        persistent_workers: bool = False,
    ) -> None:
        self.streams = isinstance(dataset, IterableDataset)
        self.ranks, self.order = ranks, indices(dataset, shuffle, sampler, generator)
        if ranks.world_size > 1:
            self.order = SharedSampler(self.order, ranks, pad=not drop_last)
        cut = OwnStreamSampler if self.streams else OwnBatchSampler
        start = batch_size * ranks.world_size
        size = partial(int, start * batches_per_step)  # until `follow` says another
        self.batch_sampler = cut(self.order, size, start, drop_last, batches_per_step, ranks)
        if isinstance(self.batch_sampler, OwnStreamSampler) and not num_workers:
            self.batch_sampler.read_here(dataset)
        self._generators = _different(generator, getattr(self.order, "generator", None))
        self._numbered = (self.order, getattr(self.order, "sampler", None), dataset if self.streams else None)
        self._one_iteration = self.streams and persistent_workers  # at a time, and it cannot begin in the middle
        self.passes = 0
        self._under_way: list[EpochPasses] = []  # epochs, the one that delivered last at the end
        self.delivering: EpochPasses | None = None
        self.latest: EpochPasses | None = None
        self._compared: PassCut | None = None  # the pass whose order all ranks have compared
        self._left: EpochPasses | None = None  # of which the next epoch goes on with the pass
        self._rest: Rest | None = None  # of a saved pass, for the next epoch to go on with
        self._loaded: dict[str, Any] | None = None  # its state, as long as no batch of it has been delivered

    def follow(self, size: Callable[[], int], few: Callable[[], bool] = bool) -> None:
        """Ask this for the size of the next optimizer step, samples, from here on; see `AdaptiveBatchSampler`."""
        self.batch_sampler.follow(size, few)

    def opened(self) -> AbstractContextManager[None]:
        """Put around the beginning of the loader's own iteration over `batch_sampler`, which refuses any other."""
        if self._left is not None and self._one_iteration:
            # Its workers are about to be taken away: the stream is read again up to where it was.
            self._loaded = self._left.cut.state_dict()
            self._left, self._rest = None, Rest(self._loaded)
        return self.batch_sampler.opened()

    def iterate(self, fetch: Callable[[], Iterator[Any]], by_shares: bool) -> EpochPasses:
        """Begin an epoch, or go on with one.

        Args:
            fetch: begins a DataLoader's own iteration over `batch_sampler`.
            by_shares: True if an epoch is a share of the run's progress.
        """
        left, rest = self._left, self._rest
        self.latest = self.delivering
        if rest is None and left is None:
            return EpochPasses(*self._begin_pass(fetch, by_shares))
        self._left, self._rest = self._go_on(left, rest, fetch), None  # left over until it delivers a batch
        return self._left

    def _go_on(self, left: EpochPasses | None, rest: Rest | None, fetch: Callable[[], Iterator[Any]]) -> EpochPasses:
        """An epoch that begins with what is left of a pass: of one in this run, or of a saved one."""
        if rest is None and left is not None and self.streams:  # a stream cannot be read again from its middle
            return left.for_the_next_epoch()
        # To go on draws nothing: the sampler may not have drawn all of the pass. Workers begin anew, as at every epoch
        # of a stock loader, and see what has been changed in the dataset.
        cut = self.batch_sampler.new_pass(rest) if left is None else left.cut
        with _Untouched(_different(*self._generators, torch.default_generator)):
            return EpochPasses(*self._fetched(fetch, cut))

    def next_pass(self, epoch: EpochPasses, fetch: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """Begin another pass within an epoch. Return a DataLoader's iteration over it."""
        self.delivering = None  # nothing of this pass yet
        epoch.go_on_with(*self._begin_pass(fetch, True, epoch.end_pass()))
        return epoch.fetched

    def _begin_pass(
        self, fetch: Callable[[], Iterator[Any]], by_shares: bool, after: PassCut | None = None
    ) -> tuple[PassCut, Iterator[Any]]:
        if by_shares:
            number_pass(self.passes, *self._numbered)
        self.passes += 1
        return self._fetched(fetch, self.batch_sampler.new_pass(after=after))

    def _fetched(self, fetch: Callable[[], Iterator[Any]], cut: PassCut) -> tuple[PassCut, Iterator[Any]]:
        with self.batch_sampler.over(cut):
            return cut, fetch()

    @property
    def length(self) -> int:
        """Batches of the epoch under way if it is one pass: those delivered and those left at the size of now.

        Between two epochs it is that of the one that has ended, and of a whole pass before the first.
        """
        return len(self.batch_sampler) if self.latest is None else self.latest.length

    def begin_run(self) -> None:
        """Take note that the run begins: what was looked at before was no pass of it."""
        self.passes, self._left = 0, None

    def drop_rest(self) -> None:
        """Let the next epoch begin a pass, also where something is left of one."""
        self._left = self._rest = self._loaded = None

    def close(self) -> None:
        """Go on with no pass any more."""
        self._left = self._rest = None

    def begin_plain(self) -> None:
        """Take note of an iteration over batches of the size of now, which are not counted."""
        self.latest = self.delivering

    def delivers(self, epoch: EpochPasses) -> None:
        """Take note of the epoch that delivers a batch, where it is not `delivering` already."""
        if isinstance(self.order, SharedSampler) and epoch.cut is not self._compared:
            self.order.check_alike()
            self._compared = epoch.cut
        if epoch in self._under_way:
            self._under_way.remove(epoch)
        self._loaded = None
        if self._left is epoch:
            self._left = None
        self._under_way.append(epoch)
        self.delivering = self.latest = epoch

    def ends(self, epoch: EpochPasses, goes_on: bool = False) -> None:
        """Take note of the end of an epoch.

        Args:
            epoch: the one that ends.
            goes_on: True if the next goes on with its pass, as far as that is not at its end.
        """
        if epoch in self._under_way:
            self._under_way.remove(epoch)
        self.delivering = self._under_way[-1] if self._under_way else None
        self.latest = self.delivering or self.latest
        if self._left is epoch:  # nothing was left: a state had been saved at its last batch
            self._left = None
        if goes_on and epoch.left_over():
            self._left = epoch
        if self._left is not epoch or not self.streams:
            epoch.close()

    def state_dict(self, under_way: bool) -> dict[str, Any]:
        """The rest of the pass under way, if one is, the generators' states, and the number of passes.

        Args:
            under_way: True in the middle of an epoch.

        Raises:
            RuntimeError: where it is not clear which iteration that is.
        """
        if not under_way and any(epoch.begun for epoch in self._under_way):
            raise RuntimeError(
                "an iteration over the loader has ended inside of another, so what is left of the epoch is not clear: "
                "save after the next batch, and end or drop iterators that you no longer use"
            )
        latest = self._under_way[-1] if self._under_way else self._left
        return {
            "rest": latest.cut.state_dict() if latest is not None else self._loaded,
            "passes": self.passes,
            "generators": [generator.get_state() for generator in self._generators],
        }

    def read(self, state: dict[str, Any]) -> Rest | None:
        """The rest of the pass that was under way, its order drawn again; nothing is changed.

        Raises:
            ValueError: where the order cannot be drawn again, because it is another's.
        """
        rest = state["rest"]
        if rest is None:
            return None
        if isinstance(self.batch_sampler, OwnStreamSampler):
            self.batch_sampler.check_state(rest)
            return Rest(rest)
        return Rest(rest, redraw(self.order, rest["order"]))

    def go_on(self, state: dict[str, Any], rest: Rest | None) -> None:
        """Let the next epoch be the rest of the one that was under way, as `read` has read it, or begin with it."""
        self._rest, self._loaded, self._left, self._under_way, self.delivering = rest, state["rest"], None, [], None
        self.passes = state["passes"]
        for generator, saved in zip(self._generators, state["generators"], strict=False):
            generator.set_state(saved)


class _Untouched(AbstractContextManager[None]):
    """Puts generators back to where they were. Meanwhile they make numbers of their own, not those that follow."""

    def __init__(self, generators: list[Generator]) -> None:
        self._saved = [(generator, generator.get_state()) for generator in generators]

    def __enter__(self) -> None:
        for generator, _ in self._saved:
            next_one = torch.empty((), dtype=torch.int64, device="cpu").random_(generator=generator)
            generator.manual_seed(int(next_one) ^ APART)

    def __exit__(self, *_: object) -> None:
        for generator, state in self._saved:
            generator.set_state(state)


def _different(*generators: Any) -> list[Generator]:
    found: list[Generator] = []
    for generator in generators:
        if isinstance(generator, Generator) and not any(generator is other for other in found):
            found.append(generator)
    return found

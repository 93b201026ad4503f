"""From a dataset and its order to batches of changing size, pass by pass, and what is left of a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Generator
from torch.utils.data import IterableDataset

from ..ranks import ALONE, Ranks
from .batch_info import BatchInfo
from .batch_sampler import never
from .draw import Rest, redraw
from .epoch_passes import EpochPasses
from .order import indices, number_pass
from .own import OwnBatchSampler, OwnStreamSampler
from .pass_cut import NoBatches, PassCut
from .ranks import SharedSampler

APART = 0x5EED  # xor that turns one seed into another


class EpochSource:
    """The batch sampler behind a DataLoader whose batch changes, and the iterations over it.

    An iteration delivers an epoch. An epoch is a pass over the data, or a share of the run's progress. A share begins
    with the rest of the pass that the epoch before has left, and may begin further passes.

    Args:
        dataset, batch_size, shuffle, sampler, drop_last, generator, num_workers, persistent_workers: the arguments of a
            DataLoader.
        batches_per_step: batches of an optimizer step, on each rank.
        ranks: the ranks that share every batch; `batch_size` is that of each.

    Attributes:
        batch_sampler: the batch sampler to give to a DataLoader. For a stream it replaces the DataLoader's own.
        order: the sampler that yields the indices. For a stream it only has a length.
        streams: True if the dataset is an IterableDataset.
        delivering: the unfinished epoch that has delivered last; None if there is none.
        latest: the epoch that has delivered last, even if it is over.
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
        size = partial(int, start * batches_per_step)  # until `follow` gives another
        self.batch_sampler = cut(self.order, size, start, drop_last, batches_per_step, ranks)
        if isinstance(self.batch_sampler, OwnStreamSampler) and not num_workers:
            self.batch_sampler.read_here(dataset)
        self._generators = _distinct_generators(generator, getattr(self.order, "generator", None))
        self._numbered = (self.order, getattr(self.order, "sampler", None), dataset if self.streams else None)
        self._keeps_workers = persistent_workers and num_workers > 0
        self._starts_workers = False  # True where a saved run goes on whose workers had begun, before its next pass
        self._one_iteration = self.streams and persistent_workers  # at a time, and always from the beginning
        self.passes = 0
        self._under_way: list[EpochPasses] = []  # unfinished epochs; the one that delivered last is at the end
        self.delivering: EpochPasses | None = None
        self.latest: EpochPasses | None = None
        self._compared: PassCut | None = None  # the pass whose order all ranks have compared
        self._left: EpochPasses | None = None  # the epoch whose pass the next one continues
        self._rest: Rest | None = None  # the rest of a saved pass, which the next epoch continues
        self._loaded: dict[str, Any] | None = None  # state of that pass, until a batch of it has been delivered

    def follow(self, size: Callable[[], int], halves_the_rest: Callable[[], bool] = never) -> None:
        """Ask these functions for the sizes of steps from here on; see `AdaptiveBatchSampler.follow`."""
        self.batch_sampler.follow(size, halves_the_rest)

    def opened(self) -> AbstractContextManager[None]:
        """A context in which the loader may begin to iterate over `batch_sampler`. Anybody else is refused."""
        if self._left is not None and self._one_iteration:
            # The new iteration takes its workers, so the stream is read again up to its present place.
            self._loaded = self._left.cut.state_dict()
            self._left, self._rest = None, Rest(self._loaded)
        return self.batch_sampler.opened()

    def iterate(self, fetch: Callable[[], Iterator[Any]], by_shares: bool) -> EpochPasses:
        """Begin an epoch, or continue one.

        Args:
            fetch: begins a DataLoader's own iteration over `batch_sampler`.
            by_shares: True if an epoch is a share of the run's progress.
        """
        left, rest = self._left, self._rest
        self.latest = self.delivering
        if rest is None and left is None:
            return EpochPasses(*self._begin_pass(fetch, by_shares))
        self._left, self._rest = self._continue(left, rest, fetch), None  # `_left` until it delivers a batch
        return self._left

    def _continue(self, left: EpochPasses | None, rest: Rest | None, fetch: Callable[[], Iterator[Any]]) -> EpochPasses:
        """Begin an epoch with the rest of a pass, of this run or of a saved one."""
        if rest is None and left is not None and self.streams:  # a stream cannot be read again from its middle
            return left.for_the_next_epoch()
        # Continuing must draw nothing, since the sampler may not have drawn all of the pass. Workers begin anew, as at
        # every epoch of a stock loader, so they see changes of the dataset.
        cut = self.batch_sampler.new_pass(rest) if left is None else left.cut
        with _PreservedGenerators(_distinct_generators(*self._generators, torch.default_generator)):
            return EpochPasses(*self._fetched(fetch, cut), is_rest=True)

    def next_pass(self, epoch: EpochPasses, fetch: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """Begin another pass within an epoch. Return a DataLoader's iteration over it."""
        self.delivering = None  # it has delivered nothing of this pass yet
        epoch.go_on_with(*self._begin_pass(fetch, True, epoch.end_pass()))
        return epoch.fetched

    def _begin_pass(
        self, fetch: Callable[[], Iterator[Any]], by_shares: bool, after: PassCut | None = None
    ) -> tuple[PassCut, Iterator[Any]]:
        if self._starts_workers:
            self._start_workers(fetch)
        if by_shares:
            number_pass(self.passes, *self._numbered)
        self.passes += 1
        return self._fetched(fetch, self.batch_sampler.new_pass(after=after))

    def _start_workers(self, fetch: Callable[[], Iterator[Any]]) -> None:
        """Start workers that persist. Those of the saved run had drawn their seed by then, so nothing is drawn here."""
        self._starts_workers = False
        with _PreservedGenerators(_distinct_generators(*self._generators, torch.default_generator)):
            self._fetched(fetch, NoBatches(self.batch_sampler))

    def _fetched(self, fetch: Callable[[], Iterator[Any]], cut: PassCut) -> tuple[PassCut, Iterator[Any]]:
        with self.batch_sampler.over(cut):
            return cut, fetch()

    @property
    def length(self) -> int:
        """Batches of the current epoch if it is one pass: those delivered, and those left at the present size.

        Between two epochs it is the length of the one that has ended. Before the first it is that of a whole pass.
        """
        return len(self.batch_sampler) if self.latest is None else self.latest.length

    def begin_run(self) -> None:
        """Begin the run. Earlier iterations, which only looked at the data, are no passes of it."""
        self.passes, self._left = 0, None

    def drop_rest(self) -> None:
        """Let the next epoch begin a new pass, even if the last pass is not finished."""
        self._left = self._rest = self._loaded = None

    def close(self) -> None:
        """Continue no pass any more."""
        self._left = self._rest = None

    def begin_plain(self) -> None:
        """Begin an iteration over batches of the present size that are not counted."""
        self.latest = self.delivering

    def delivers(self, epoch: EpochPasses) -> None:
        """Record that an epoch delivers a batch. Call it only if the epoch is not `delivering` already."""
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
        """Record the end of an epoch.

        Args:
            epoch: the epoch that ends.
            goes_on: True if the next epoch continues its pass, unless the pass is at its end.
        """
        if epoch in self._under_way:
            self._under_way.remove(epoch)
        self.delivering = self._under_way[-1] if self._under_way else None
        self.latest = self.delivering or self.latest
        if self._left is epoch:  # its pass had ended: a state was saved at the last batch
            self._left = self._loaded = None
        if goes_on and epoch.left_over():
            self._left = epoch
        if self._left is not epoch or not self.streams:
            epoch.close()

    def take_back(self, epoch: EpochPasses, looked_at: Sequence[BatchInfo]) -> None:
        """Record the end of an epoch that only looked at batches. The next one begins where it did.

        Args:
            epoch: the epoch that ends.
            looked_at: the batches that it has fetched of the rest of a pass, if it began with one, oldest first.
        """
        self.passes -= epoch.passes_begun
        self.ends(epoch)
        if not epoch.take_back(looked_at):
            return
        if self.streams:  # what was fetched is gone, so the stream is read again up to its place before
            self._loaded = epoch.cut.state_dict()
            self._rest = Rest(self._loaded)
        else:
            self._left = epoch

    def state_dict(self, under_way: bool) -> dict[str, Any]:
        """The rest of the current pass, if there is one, the generators' states, and the number of passes.

        Args:
            under_way: True in the middle of an epoch.

        Raises:
            RuntimeError: if it is not clear which iteration is the current one.
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
        """The rest of the pass of a saved state. Its order is drawn again. Changes nothing.

        Raises:
            ValueError: if the order cannot be drawn again, because the state belongs to other data or another sampler.
        """
        rest = state["rest"]
        if rest is None:
            return None
        if isinstance(self.batch_sampler, OwnStreamSampler):
            self.batch_sampler.check_state(rest)
            return Rest(rest)
        return Rest(rest, redraw(self.order, rest["order"]))

    def go_on(self, state: dict[str, Any], rest: Rest | None) -> None:
        """Resume from a saved state. The next epoch continues the pass that `read` has returned."""
        self._rest, self._loaded, self._left, self._under_way, self.delivering = rest, state["rest"], None, [], None
        self.passes = state["passes"]
        self._starts_workers = self._keeps_workers and rest is None and self.passes > 0
        for generator, saved in zip(self._generators, state["generators"], strict=False):
            generator.set_state(saved)


class _PreservedGenerators(AbstractContextManager[None]):
    """Restores generators at its end. Inside they make other numbers than those that will follow afterwards."""

    def __init__(self, generators: list[Generator]) -> None:
        self._saved = [(generator, generator.get_state()) for generator in generators]

    def __enter__(self) -> None:
        for generator, _ in self._saved:
            next_one = torch.empty((), dtype=torch.int64, device="cpu").random_(generator=generator)
            generator.manual_seed(int(next_one) ^ APART)

    def __exit__(self, *_: object) -> None:
        for generator, state in self._saved:
            generator.set_state(state)


def _distinct_generators(*generators: Any) -> list[Generator]:
    found: list[Generator] = []
    for generator in generators:
        if isinstance(generator, Generator) and not any(generator is other for other in found):
            found.append(generator)
    return found

"""A fastai DataLoader's batches, cut at a size that may change at any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from fastai.torch_core import set_seed, to_device
from fastcore.basics import GetAttr
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import Dataset, get_worker_info

from ..run import TrainingRun
from ..sampling import AdaptiveBatchSampler, EpochPasses, PassCut
from .learner import check_indices, epoch_samples, is_language_model


class LeftOver(NamedTuple):
    """A pass over a loader's data that goes on after an epoch.

    Attributes:
        sampler: the batch sampler of the pass.
        cut: the pass.
        dropped: indices of the pass that are not delivered, because of `drop_last`.
    """

    sampler: AdaptiveBatchSampler
    cut: PassCut
    dropped: Sequence[int]


class AdaptiveBatches(GetAttr):
    """Stands in for a fastai DataLoader during the training part of an epoch. Only the iteration is its own.

    fastai reads a loader's batch size once an epoch, and in the workers if there are any. So an inner torch DataLoader
    with an adaptive batch sampler runs the same items, collation and transforms in the same order, and draws from the
    same random generators as the loader would.

    Args:
        dl: the loader.
        run: the training run.
        at_end: called when the epoch is over, even if it was interrupted.
        on_pass: called when another pass begins within the epoch.
        before: the batches of the epoch before, which may have left the rest of a pass. None: this is the first epoch.

    Attributes:
        left_over: the pass that the next epoch continues; None if it begins a new one.
    """

    _default = "dl"

    def __init__(
        self,
        dl: Any,
        run: TrainingRun,
        at_end: Callable[[], None],
        on_pass: Callable[[], None] = lambda: None,
        before: AdaptiveBatches | None = None,
    ) -> None:
        self.dl, self._run, self._on_pass, self._at_end = dl, run, on_pass, at_end
        self._passes: EpochPasses | None = None  # of this epoch
        self._now = before.left_over if before is not None and before.dl is dl else None  # the pass under way
        self.left_over: LeftOver | None = None

    @property
    def batches_left(self) -> int:
        """Batches still to come in this epoch, at the present size."""
        controller = self._run.controller
        samples = self._now.cut.samples_left if self._now is not None else epoch_samples(self.dl)
        return self._run.batches_left((-(-samples // controller.batch_size), samples))

    def __len__(self) -> int:
        return self.batches_left

    def __iter__(self) -> Iterator[Any]:
        run = self._run
        try:
            fetched = self._begin_pass() if self._now is None else self._fetch(self._now)
            assert self._now is not None
            passes = self._passes = EpochPasses(self._now.cut, fetched)
            batches = map(self._finish, fetched)
            for batch in run.deliver(batches, passes.queue, next_pass=partial(self._next_pass, passes)):
                if batch is not None:
                    yield batch
            if run.goes_on and passes.left_over():
                self.left_over = self._now
        finally:  # also after Ctrl-C or an error, of which fastai tells no callback
            if self._passes is not None:
                self._passes.close()
            self._at_end()
        if self.left_over is None:
            self._end_pass()

    def _begin_pass(self, after: PassCut | None = None) -> Iterator[Any]:
        """Begin a pass. `after` is the pass before it within the epoch."""
        dl, controller = self.dl, self._run.controller
        dl.randomize()
        dl.before_iter()
        indices = dl.get_idxs()
        if not hasattr(indices, "__getitem__"):  # SortedDL's is an iterator
            indices = list(indices)
        check_indices(dl, len(indices))
        kept = _First(indices, epoch_samples(dl))
        row_multiple, tail_rows = _layout(dl)
        sampler = AdaptiveBatchSampler(
            kept, lambda: controller.batch_size, controller.start_batch_size, drop_last=False,
            row_multiple=row_multiple, tail_rows=tail_rows,
        )  # fmt: skip
        sampler.follow(sampler.size, controller.rules.has_few_sizes)
        self._now = LeftOver(sampler, sampler.new_pass(after=after), indices[len(kept) :])
        return self._fetch(self._now)

    def _fetch(self, now: LeftOver) -> Iterator[Any]:
        """Begin a DataLoader's iteration over a pass, or over the rest of it."""
        dl = self.dl
        loader: TorchLoader[Any] = TorchLoader(
            _Items(dl),
            batch_sampler=now.sampler,
            collate_fn=_Collate(dl),
            num_workers=dl.fake_l.num_workers,
            pin_memory=dl.pin_memory,
            timeout=dl.timeout,
            worker_init_fn=_init_worker,
        )
        with now.sampler.over(now.cut):
            return iter(loader)

    def _next_pass(self, passes: EpochPasses) -> Iterator[Any]:
        """Begin another pass within the epoch."""
        before = passes.end_pass()
        self._end_pass()
        fetched = self._begin_pass(after=before)
        assert self._now is not None
        passes.go_on_with(self._now.cut, fetched)
        self._on_pass()
        return map(self._finish, fetched)

    def _end_pass(self) -> None:
        dl = self.dl
        if not dl.fake_l.num_workers and self._now is not None:
            for index in self._now.dropped:  # fastai loads these items too, which may draw random numbers
                dl.do_item(index)
        dl.after_iter()

    def _finish(self, batch: Any) -> Any:
        if batch is None:
            return None
        dl = self.dl
        if dl.pin_memory and type(batch) is list:  # pinning makes lists of tuples
            batch = tuple(batch)
        if dl.device is not None:
            batch = to_device(batch, dl.device)
        return dl.after_batch(batch)


def _layout(dl: Any) -> tuple[int, int]:
    """The number of rows of which a batch must be a multiple, and the number of shorter rows at an epoch's end."""
    if not is_language_model(dl):
        return 1, 0
    return dl.bs, dl.bs if dl.last_len != dl.seq_len else 0


class _First:
    """The first indices of a pass, without a copy of them."""

    def __init__(self, indices: Any, samples: int) -> None:
        self._indices, self._samples = indices, min(samples, len(indices))

    def __len__(self) -> int:
        return self._samples

    def __iter__(self) -> Iterator[Any]:
        return islice(self._indices, self._samples)


class _Items(Dataset[Any]):
    def __init__(self, dl: Any) -> None:
        self.dl = dl

    def __getitem__(self, index: int) -> Any:
        return self.dl.do_item(index)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:  # which torch asks for, if it is there
        return list(map(self.dl.do_item, indices))


class _Collate:
    def __init__(self, dl: Any) -> None:
        self.dl = dl

    def __call__(self, items: Sequence[Any]) -> Any:
        kept = [item for item in items if item is not None]  # None: SkipItemException
        return self.dl.do_batch(kept) if kept else None


def _init_worker(worker_id: int) -> None:
    info: Any = get_worker_info()
    torch.set_num_threads(1)
    set_seed(info.seed)
    info.dataset.dl.wif()

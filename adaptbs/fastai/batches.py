"""A fastai DataLoader's batches, cut at a size that may change at any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from fastai.torch_core import set_seed, to_device
from fastcore.basics import GetAttr
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import Dataset, get_worker_info

from ..run import TrainingRun
from ..sampling import AdaptiveBatchSampler
from .learner import check_indices, is_language_model


class AdaptiveBatches(GetAttr):
    """Stands in for a fastai DataLoader during the training part of an epoch; all but iteration is the loader's.

    fastai reads a loader's size once an epoch, in the workers if there are any. So an inner torch DataLoader, whose
    batch sampler can change its mind, runs the same items, collation and transforms in the same order, and draws from
    the same random generators as the loader would.
    """

    _default = "dl"

    def __init__(self, dl: Any, run: TrainingRun, at_end: Callable[[], None]) -> None:
        self.dl, self._run, self._at_end = dl, run, at_end

    def __len__(self) -> int:
        return -(-self._run.controller.epoch_samples // self._run.controller.batch_size)

    def __iter__(self) -> Iterator[Any]:
        dl, run, controller = self.dl, self._run, self._run.controller
        try:
            dl.randomize()
            dl.before_iter()
            indices = dl.get_idxs()
            if not hasattr(indices, "__getitem__"):  # SortedDL's is an iterator
                indices = list(indices)
            check_indices(dl, len(indices))
            kept = _First(indices, controller.epoch_samples)
            row_multiple, tail_rows = _layout(dl)
            cut = AdaptiveBatchSampler(
                kept, lambda: controller.batch_size, controller.start_batch_size, drop_last=False,
                row_multiple=row_multiple, tail_rows=tail_rows,
            )  # fmt: skip
            loader: TorchLoader[Any] = TorchLoader(
                _Items(dl),
                batch_sampler=cut,
                collate_fn=_Collate(dl),
                num_workers=dl.fake_l.num_workers,
                pin_memory=dl.pin_memory,
                timeout=dl.timeout,
                worker_init_fn=_init_worker,
            )
            fetched = iter(loader)
            for batch in run.deliver(map(self._finish, fetched), cut.issued):
                if batch is not None:
                    yield batch
        finally:  # also after Ctrl-C or an error, of which fastai tells no callback
            self._at_end()
        if not dl.fake_l.num_workers:
            for index in indices[len(kept) :]:  # what drop_last drops, fastai loads: it may draw random numbers
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
    """Multiples of how many rows a batch has to be, and how many of an epoch's last rows are shorter than others."""
    if not is_language_model(dl):
        return 1, 0
    return dl.bs, dl.bs if dl.last_len != dl.seq_len else 0


class _First:
    """The first indices of an epoch, without a copy of them."""

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

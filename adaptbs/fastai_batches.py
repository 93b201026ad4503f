"""A fastai DataLoader's batches, cut at a size that may change at any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from fastai.data.load import DataLoader as FastaiLoader
from fastai.torch_core import set_seed, to_device, to_float
from fastcore.basics import GetAttr
from torch import Tensor, nn
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import Dataset, get_worker_info

from .model import BatchLoss
from .run import Controller
from .sampling import AdaptiveBatchSampler

# Callbacks, by name: importing them takes its time.
ACCUMULATION = "GradientAccumulation"
RNN = "RNNCallback"


def check(dl: Any) -> None:
    """Raise TypeError if the batches of this loader cannot be cut anew."""
    advice = "Train without AdaptiveBatchSize, or give a fastai DataLoader over an indexed dataset."
    if not isinstance(dl, FastaiLoader):
        raise TypeError(f"dls.train is a {type(dl).__name__}, not a fastai DataLoader: its batch cannot grow. {advice}")
    if _is(dl, "DistributedDL"):
        raise TypeError(
            "dls.train is split among processes (distrib_ctx), which would not agree on a batch size: train without "
            "AdaptiveBatchSize, or with a plain loop and AdaptiveDataLoader under torchrun, which do agree."
        )
    if not dl.indexed or dl.bs is None or dl.n is None:
        raise TypeError(f"dls.train has no index, no length or no batch size of its own: it cannot grow. {advice}")


def check_alone(learn: Any, kind: type) -> None:
    """Raise ValueError if a Learner has two callbacks of a kind that each multiply its hyperparameters."""
    if sum(isinstance(cb, kind) for cb in learn.cbs) > 1:
        raise ValueError(
            f"the Learner has two {kind.__name__} callbacks, whose factors would multiply: "
            "give one, to the Learner or to the fit"
        )


def is_language_model(dl: Any) -> bool:
    """Whether row i of a batch goes on in row i of the next, in a layout made for `dl.bs` rows."""
    return _is(dl, "LMDataLoader")


def _is(dl: Any, name: str) -> bool:
    return any(cls.__name__ == name for cls in type(dl).__mro__)  # (by name: modules are slow, or missing, to import)


def epoch_samples(dl: Any) -> int:
    """How many samples an epoch of this loader delivers."""
    n = getattr(dl, "partial_n", None) or dl.n  # PartialDL
    return int(n - n % dl.bs if dl.drop_last else n)


def accumulation(learn: Any, bs: int) -> int:
    """The batch of an optimizer step, samples: what GradientAccumulation makes of loader batches of `bs`.

    Its part is taken over from it for this fit: as the batch grows, its count to `n_acc` would be wrong.
    """
    start = bs
    for cb in learn.cbs:
        if type(cb).__name__ == ACCUMULATION:
            start, cb.run = max(start, -(-cb.n_acc // bs) * bs), False
    return start


def hand_back_accumulation(learn: Any) -> None:
    """Undo that, also where a fit was interrupted."""
    for cb in learn.cbs:
        if type(cb).__name__ == ACCUMULATION:
            cb.run = True


def batch_loss(learn: Any) -> Callable[[nn.Module, Any], Tensor]:
    """The loss of a Learner on a batch (inputs, targets, maybe what is `carried`), but without its callbacks.

    As fastai computes it: mixed precision hands the loss a prediction in single precision, MixUp a second target. What
    RNNRegularizer adds is left out, like weight decay.
    """

    def loss(model: nn.Module, batch: Any) -> Tensor:
        xb, yb, *beside = batch
        pred = prediction(learn, model(*xb))
        with carrying(learn, beside):
            value: Tensor = learn.loss_func(to_float(pred) if hasattr(learn, "mixed_precision") else pred, *yb)
        return value

    return loss


def prediction(learn: Any, output: Any) -> Any:
    """What the loss is given of the model's output: RNNCallback keeps the first of an AWD-LSTM's three."""
    if not any(type(cb).__name__ == RNN for cb in learn.cbs):
        return output
    first = output[0]
    return first[-1] if isinstance(first, (list, tuple)) else first


def carried(learn: Any) -> list[Any]:
    """What MixUp, CutMix and their like keep of the batch in hand: its partners' targets and their shares."""
    return [[cb.yb1, cb.lam] for cb in _mixing(learn)]


@contextmanager
def carrying(learn: Any, beside: Sequence[Any]) -> Iterator[None]:
    """Meanwhile let them keep this, where it is given: `[carried(learn)]`, or the same of a part of the batch."""
    found = carried(learn)
    try:
        for kept in beside:
            _carry(learn, kept)
        yield
    finally:
        _carry(learn, found)


def _carry(learn: Any, kept: Sequence[Any]) -> None:
    for cb, (targets, share) in zip(_mixing(learn), kept, strict=True):
        cb.yb1, cb.lam = targets, share


def _mixing(learn: Any) -> list[Any]:
    return [cb for cb in learn.cbs if {"yb1", "lam"} <= cb.__dict__.keys()]


def loss_apart(learn: Any) -> BatchLoss:
    """The same between two batches, where no callback has made the context of mixed precision."""

    def autocast() -> AbstractContextManager[Any]:
        mixed = getattr(learn, "mixed_precision", None)
        return mixed.autocast if mixed is not None else nullcontext()

    return BatchLoss(batch_loss=batch_loss(learn), autocast=autocast)


class AdaptiveBatches(GetAttr):  # type: ignore[misc]
    """Stands in for a fastai DataLoader during the training part of an epoch; all but iteration is the loader's.

    fastai reads a loader's size once an epoch, in the workers if there are any. So an inner torch DataLoader, whose
    batch sampler can change its mind, runs the same items, collation and transforms in the same order, and draws from
    the same random generators as the loader would.
    """

    _default = "dl"

    def __init__(self, dl: Any, controller: Controller, at_end: Callable[[], None]) -> None:
        self.dl, self.controller, self._at_end = dl, controller, at_end

    def __len__(self) -> int:
        return -(-self.controller.epoch_samples // self.controller.batch_size)

    def __iter__(self) -> Iterator[Any]:
        dl, controller = self.dl, self.controller
        dl.randomize()
        dl.before_iter()
        indices = list(dl.get_idxs())  # SortedDL's is an iterator
        kept = indices[: controller.epoch_samples]
        rows, apart = _layout(dl)
        cut = AdaptiveBatchSampler(
            kept, lambda: controller.batch_size, controller.start, drop_last=False, rows=rows, apart=apart
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
        try:
            for batch in controller.deliver(map(self._finish, fetched), cut.issued):
                if batch is not None:
                    yield batch
        finally:  # also after Ctrl-C, of which fastai tells no callback
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


class _Items(Dataset[Any]):
    def __init__(self, dl: Any) -> None:
        self.dl = dl

    def __getitem__(self, index: int) -> Any:
        return self.dl.do_item(index)


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

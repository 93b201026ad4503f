"""Reads from a Learner if its batch can grow, the samples of a step and of an epoch, and how to compute its loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from fastai.data.load import DataLoader as FastaiLoader
from fastai.torch_core import cast, to_float
from torch import Tensor, nn
from torch.utils.data import DataLoader as TorchLoader

from ..model import OF_A_LEARNER, AttributeCopies, BatchLoss, Calling, Split, certain_split, slice_batch

# Names of callbacks, because importing their classes takes long.
ACCUMULATION = "GradientAccumulation"
RNN = "RNNCallback"
NOT_TAKEN = (AttributeError, TypeError, ValueError, KeyError, IndexError)  # from a loss of another layout
RESETTER = "ModelResetter"
CASTER = "CastToTensor"

# Methods of a loader that make its batches. AdaptiveBatches replaces them, so they must not be overridden. With what to
# override instead.
PASSED_OVER = {
    "__iter__": "Change an item in after_item, a batch in after_batch",
    "create_batches": "Let do_item return the index and create_batch make a batch of indices, as TabDataLoader does",
    "sample": "Choose and order the indices in get_idxs",
    "chunkify": "Order the indices in get_idxs, and change a batch's items in before_batch",
    "prebatched": "Give batches of items, or bs=None where each item of the dataset is a batch",
}


def check_loader(dl: Any) -> None:
    """Raise TypeError if the batch size of this loader cannot be changed."""
    advice = "Train without AdaptiveBatchSize, or give a fastai DataLoader over an indexed dataset."
    if not isinstance(dl, FastaiLoader):
        if isinstance(dl, TorchLoader):
            advice = (
                "Train without AdaptiveBatchSize, or use fastai's DataLoader, which takes batch_size, shuffle, "
                "drop_last, num_workers and pin_memory alike: from fastai.data.load import DataLoader."
            )
        raise TypeError(f"dls.train is a {type(dl).__name__}, not a fastai DataLoader: its batch cannot grow. {advice}")
    if _has_class_named(dl, "DistributedDL"):
        raise TypeError(
            "dls.train is split among processes (distrib_ctx), which would not agree on a batch size. Train without "
            "AdaptiveBatchSize, or use AdaptiveDataLoader in a plain loop under torchrun, where the processes agree."
        )
    if not dl.indexed or dl.bs is None or dl.n is None:
        raise TypeError(f"dls.train has no index, no length or no batch size of its own: it cannot grow. {advice}")
    for method, instead in PASSED_OVER.items():
        given, owner = method in vars(dl), owner_of(dl, method)
        if given or owner is not FastaiLoader:
            whose = "was given to it" if given else f"is {owner.__name__}'s own"
            raise TypeError(
                f"dls.train is a {type(dl).__name__} whose {method} {whose}: AdaptiveBatchSize makes the batches "
                f"itself, and would train on other data than this loader gives. {instead}, or train without "
                "AdaptiveBatchSize."
            )


def validation_batch_size(learn: Any) -> int | None:
    """Samples of a validation batch; None if there is no validation, or if one batch holds all of its samples."""
    dl = learn.dls.loaders[1] if len(learn.dls.loaders) > 1 else None
    size, samples = getattr(dl, "bs", None), getattr(dl, "n", None)
    return size if size and samples and samples > size else None


def check_indices(dl: Any, found: int) -> None:
    """Raise TypeError if a `get_idxs` that is not fastai's gives another number of indices than the loader's `n`."""
    foreign = "get_idxs" in vars(dl) or not owner_of(dl, "get_idxs").__module__.startswith("fastai.")
    if foreign and found != epoch_indices(dl):
        raise TypeError(
            f"dls.train is a {type(dl).__name__} whose get_idxs gives {found} indices, but its n is "
            f"{epoch_indices(dl)}: the length of an epoch is not known before. Set dls.train.n to the number of "
            "indices, or train without AdaptiveBatchSize."
        )


def owner_of(dl: Any, method: str) -> type:
    """The class that defines a method of this loader."""
    return next(cls for cls in type(dl).__mro__ if method in vars(cls))


def check_alone(learn: Any, kind: type) -> None:
    """Raise ValueError if a Learner has two callbacks of this kind. Each would multiply the hyperparameters."""
    if sum(isinstance(cb, kind) for cb in learn.cbs) > 1:
        raise ValueError(
            f"the Learner has two {kind.__name__} callbacks, and both would scale its hyperparameters: "
            "give only one, to the Learner or to the fit"
        )


def is_language_model(dl: Any) -> bool:
    """True if row i of a batch continues in row i of the next, in a layout made for `dl.bs` rows."""
    return _has_class_named(dl, "LMDataLoader")


def _has_class_named(dl: Any, name: str) -> bool:
    # Classes are compared by name, because their modules are slow to import or not installed.
    return any(cls.__name__ == name for cls in type(dl).__mro__)


def epoch_samples(dl: Any) -> int:
    """Number of samples that an epoch of this loader delivers."""
    n = epoch_indices(dl)
    return n - n % dl.bs if dl.drop_last else n


def epoch_indices(dl: Any) -> int:
    """Number of indices that an epoch of this loader draws, with those that `drop_last` drops."""
    return int(getattr(dl, "partial_n", None) or dl.n)  # a PartialDL's epoch is shorter


def accumulation(learn: Any, bs: int) -> int:
    """Size of the logical batch of a Learner with GradientAccumulation, samples; `bs` where it has none.

    Args:
        learn: the Learner.
        bs: size of the loader's batches, samples.
    """
    return max([bs, *(-(-cb.n_acc // bs) * bs for cb in accumulating(learn))])


def accumulating(learn: Any) -> list[Any]:
    """The GradientAccumulation callbacks that are switched on.

    While the batch may grow they are to be off, because their count to `n_acc` would be wrong once it has grown.
    """
    return [cb for cb in learn.cbs if type(cb).__name__ == ACCUMULATION and "n_acc" in vars(cb) and cb.run]


def reset_states(learn: Any) -> None:
    """Reset a recurrent model as fastai does at the beginning of an epoch, since a new pass begins with other texts."""
    for cb in learn.cbs:
        if type(cb).__name__ == RESETTER:
            learn.model.reset()


def batch_loss(learn: Any) -> Callable[[nn.Module, Any], Tensor]:
    """A Learner's loss as a function of the model and a batch, without the Learner's events.

    A batch is (inputs, targets), or (inputs, targets, result of `carried`). The loss is computed as fastai does it:
    mixed precision gives the loss a prediction in single precision, and MixUp gives it a second target. The term of
    RNNRegularizer is left out, like weight decay. Only if the loss does not take what the model returns, other
    callbacks are asked to make the prediction of it.
    """
    asks = False

    def of(pred: Any, yb: Any) -> Tensor:
        value: Tensor = learn.loss_func(to_float(pred) if hasattr(learn, "mixed_precision") else pred, *yb)
        return value

    def loss(model: nn.Module, batch: Any) -> Tensor:
        nonlocal asks
        xb, yb, *beside = batch
        pred = prediction(learn, model(*xb))
        with carrying(learn, beside):
            if asks:
                return of(made_prediction(learn, xb, yb, pred), yb)
            try:
                return of(pred, yb)
            except NOT_TAKEN:
                made = made_prediction(learn, xb, yb, pred)
                if made is pred:
                    raise
                value, asks = of(made, yb), True
                return value

    return Calling(loss, learn.loss_func)


def as_trained(learn: Any, tensors: Any) -> Any:
    """Inputs or targets as the model and the loss get them: CastToTensor, in every Learner, makes plain tensors."""
    if not any(type(cb).__name__ == CASTER for cb in learn.cbs):
        return tensors
    if isinstance(tensors, tuple):
        return tuple(as_trained(learn, each) for each in tensors)
    return cast(tensors, Tensor) if isinstance(tensors, Tensor) else tensors


def prediction(learn: Any, output: Any) -> Any:
    """The prediction within the model's output. An AWD-LSTM has three outputs, of which RNNCallback keeps the first."""
    if not any(type(cb).__name__ == RNN for cb in learn.cbs):
        return output
    first = output[0]
    return first[-1] if isinstance(first, (list, tuple)) else first


def made_prediction(learn: Any, xb: Any, yb: Any, pred: Any) -> Any:
    """The prediction that the user's callbacks make of the model's (`after_pred`), as DropOutput does.

    Copies of them are called. What they set in the Learner is kept from it, and what they change in their own lists,
    which a copy shares, is undone.
    """
    stand_in = StandIn(learn, xb, yb, pred)
    with_one = [
        cb for cb in learn.cbs.sorted("order") if "after_pred" in cb.__dict__ or hasattr(type(cb), "after_pred")
    ]
    callbacks = [cb for cb in with_one if not type(cb).__module__.startswith("fastai.")]
    own = AttributeCopies(callbacks)
    own.take()
    try:
        for twin in map(copy.copy, callbacks):
            twin.__dict__["learn"] = stand_in
            twin.after_pred()
    finally:
        own.restore()
    return stand_in.__dict__["pred"]


class StandIn:
    """Stands in for a Learner in an event: all that is set in it stays here."""

    def __init__(self, learn: Any, xb: Any, yb: Any, pred: Any) -> None:
        self.__dict__.update(_learn=learn, xb=xb, yb=yb, pred=pred)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_learn"], name)


def batch_of(learn: Any) -> tuple[Any, Any, list[Any]]:
    """The Learner's batch: inputs, targets, and what `carried` says. Other callbacks make lists of the first two."""
    xb, yb = learn.xb, learn.yb
    return xb if type(xb) is tuple else tuple(xb), yb if type(yb) is tuple else tuple(yb), carried(learn)


def carried(learn: Any) -> list[Any]:
    """The state that MixUp, CutMix and similar callbacks keep for the current batch: second targets and shares."""
    # This runs at every step, and a set for each callback would take longer than the rest.
    return [[cb.yb1, cb.lam] for cb in learn.cbs if "lam" in cb.__dict__ and "yb1" in cb.__dict__]


@contextmanager
def carrying(learn: Any, beside: Sequence[Any]) -> Iterator[None]:
    """Give MixUp and similar callbacks another state inside this context.

    Args:
        learn: the Learner.
        beside: `[carried(learn)]`, or the same sliced to a micro-batch. Empty: their state stays.
    """
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
    return [cb for cb in learn.cbs if "lam" in cb.__dict__ and "yb1" in cb.__dict__]


def splitting(given: Split | None, *, certain: bool) -> Split:
    """A function that cuts a batch of (inputs, targets, result of `carried`).

    Args:
        given: the user's `split=` for batches `(*inputs, *targets)`. None: cut only if the layout leaves no doubt.
        certain: True if the layout is known, as for a language model.
    """

    def split(batch: Any, start: int, stop: int) -> Any:
        xb, yb, *beside = batch
        if given is not None:
            parts = tuple(given((*xb, *yb), start, stop))
            if len(parts) != len(xb) + len(yb):
                raise ValueError(f"split= returned {len(parts)} parts of a batch of {len(xb) + len(yb)}: return all")
            cut = (parts[: len(xb)], parts[len(xb) :])
        else:
            cut = slice_batch((xb, yb), start, stop) if certain else certain_split((xb, yb), start, stop)
        # Targets and shares that a callback keeps have one entry a sample, or one for the whole batch.
        return (*cut, *slice_batch((xb, beside), start, stop)[1]) if beside and any(beside) else (*cut, *beside)

    return split


def standalone_loss(learn: Any, split: Split, split_given: bool) -> BatchLoss:
    """A Learner's loss that enters mixed precision itself, to be called between two batches, outside of events."""

    def autocast() -> AbstractContextManager[Any]:
        mixed = getattr(learn, "mixed_precision", None)
        return mixed.autocast if mixed is not None else nullcontext()

    return BatchLoss(
        batch_loss=batch_loss(learn), autocast=autocast, called=OF_A_LEARNER, split=split, split_given=split_given
    )

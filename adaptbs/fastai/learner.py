"""What a Learner does with a batch, and whether its batch can grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from fastai.data.load import DataLoader as FastaiLoader
from fastai.torch_core import to_float
from torch import Tensor, nn

from ..model import BatchLoss

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

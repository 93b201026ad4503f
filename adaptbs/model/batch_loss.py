"""The scalar loss of a model on a batch, for any batch layout."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .attributes import AttributeCopies
from .batches import batch_length, describe_batch, to_device
from .preserve import Preserver, add_note
from .split import Split, certain_split
from .used_modules import modules_used_by, owners_of
from .variables import VariableCopies, functions_in

OF_A_LEARNER = "learn.loss_func"  # as fastai's loss is called in messages
OF_A_TRAINER = "compute_loss()"  # and that of Hugging Face's Trainer
NO_GRADIENT = (
    "the loss depends on no trainable parameter: compute it from what the model returns, without detach(), argmax(), a "
    "comparison or no_grad(), and check requires_grad"
)


class LossNotScalarError(ValueError):
    """The user's loss function returns something other than one number."""


class BatchLoss:
    """The loss `loss_func(model(*inputs), target)` of a batch `(*inputs, target)`, or `batch_loss(model, batch)`.

    Args:
        loss_func: function (prediction, target) -> scalar. It takes the mean over the batch, or the sum, which is
            detected.
        batch_loss: function (model, batch) -> scalar, for any other layout. Give exactly one of the two.
        autocast: function that makes the context of the forward pass, such as `lambda: torch.autocast("cuda")`.
        called: name of the loss in error messages. None: the name of the argument that was given.
        split: function (batch, start, stop) -> batch of the samples start:stop. None: a batch is cut only if its layout
            leaves no doubt.
        split_given: True if `split` is the user's own. None: True if there is a `split`.

    Attributes:
        called: name of the loss in error messages.
        split: cuts a batch. Raises NotCutError if its layout leaves doubts.
        split_given: True if the user has given `split`. Then it is relied on without a check.

    Raises:
        ValueError: if both or neither of `loss_func` and `batch_loss` are given.
        TypeError: if the given one is not a function, or is a class, or if `autocast` is not a function.
    """

    def __init__(
        self,
        loss_func: Callable[..., Tensor] | None = None,
        batch_loss: Callable[[nn.Module, Any], Tensor] | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] | None = None,
        called: str | None = None,
        split: Split | None = None,
        split_given: bool | None = None,
    ) -> None:
        if (loss_func is None) == (batch_loss is None):
            raise ValueError(
                "give either loss_func=, called as loss_func(model(*inputs), target) on a batch (*inputs, target), "
                "or batch_loss=, called as batch_loss(model, batch)"
            )
        for name, function in (("loss_func", loss_func), ("batch_loss", batch_loss)):
            if function is not None and not callable(function):
                raise TypeError(f"{name}={function!r}: it must be a function")
            if isinstance(function, type):
                raise TypeError(
                    f"{name}={function.__name__} is a class, which would be made anew of each batch: give an object of "
                    f"it, {function.__name__}()"
                )
        if autocast is not None and (not callable(autocast) or hasattr(type(autocast), "__enter__")):
            raise TypeError(
                f"autocast={type(autocast).__name__}(...): it must be a function that makes the context anew for each "
                "pass, such as lambda: torch.autocast('cuda')"
            )
        self._loss_func, self._batch_loss = loss_func, batch_loss
        self._autocast = autocast or nullcontext
        self.split: Split = split or certain_split
        self.split_given = split is not None if split_given is None else split_given
        self._preserver = Preserver()
        self._own: tuple[AttributeCopies, VariableCopies] | None = None
        self._joined: nn.ModuleList | None = None
        self.called = called or ("batch_loss=" if batch_loss else "loss_func=")

    @property
    def reduction(self) -> str | None:
        """The loss function's own `.reduction`, also that of a `partial`, if it is "mean" or "sum"; else None."""
        keywords = getattr(self._loss_func, "keywords", None) or {}
        reduction = keywords.get("reduction", getattr(self._loss_func, "reduction", None))
        return reduction if reduction in ("mean", "sum") else None

    @cached_property
    def modules(self) -> list[nn.Module]:
        """Modules that the loss function shows that it uses.

        That is the function itself, what it and the functions that it calls close over, the arguments that a `partial`
        binds, and attributes of the object whose method it is.
        """
        return modules_used_by(self._loss_func or self._batch_loss)

    @contextmanager
    def preserving(self, model: nn.Module) -> Iterator[None]:
        """A context that at its end restores the state of the model, and of all that the loss uses.

        The loss uses modules, the object whose method it is, such as a trainer that counts its calls, and variables
        that it closes over or names, such as a global counter or a generator of its own.
        """
        own, self._own = self._own or self._copies_of_own(), None  # None: inside another such context, which needs it
        for each in own:
            each.take()
        try:
            with self._preserver(self._with_own_modules(model) if self.modules else model):
                yield
        finally:
            for each in own:
                each.restore()
                each.drop()
            self._own = own

    def generators(self, model: nn.Module) -> list[Any]:
        """The generators of random numbers that the loss or the model seems to draw from, beside torch's own."""
        of_model = AttributeCopies((*model.modules(), *self.modules)), VariableCopies(functions_in(model))
        return [each for found in (*of_model, *self._copies_of_own()) for each in found.generators]

    def parameters(self, model: nn.Module) -> list[Tensor]:
        """The model's parameters, and those that the loss brings along: of its modules, or that it names by themselves.

        A backward pass adds to the `.grad` of all of them.
        """
        own = (p for module in self.modules for p in module.parameters())
        named = (p for each in self._copies_of_own() for p in each.trained)
        return list({id(p): p for p in (*model.parameters(), *own, *named)}.values())

    def _copies_of_own(self) -> tuple[AttributeCopies, VariableCopies]:
        function = self._loss_func or self._batch_loss
        return AttributeCopies(owners_of(function)), VariableCopies([function])

    def _with_own_modules(self, model: nn.Module) -> nn.Module:
        """The model and the modules of the loss function as one module, which is made once for a model."""
        if self._joined is None or self._joined[0] is not model:
            self._joined = nn.ModuleList([model, *self.modules])
        return self._joined

    def weight(self, model: nn.Module, batch: Any, samples: int | None = None) -> float:
        """Denominator of the batch's mean loss: the number of samples, or the total weight of the targets that count.

        The two differ for a loss with class weights or ignored targets. Then it is the summed loss over the mean loss,
        and 0 if the summed loss is 0.
        """
        sums = summing(self._loss_func)
        if sums is None:
            return float(batch_length(batch) if samples is None else samples)
        by_targets = weight_of_targets(self._loss_func, batch[-1:])
        if by_targets is not None:
            return by_targets
        with torch.no_grad(), self.preserving(model):
            mean, total = self(model, batch), BatchLoss(sums, autocast=self._autocast)(model, batch)
        return (total / mean).item() if total else 0.0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of the whole batch, a tensor of one element, on the model's device.

        Raises:
            TypeError: if `loss_func` was given and the batch is not laid out as (*inputs, target).
            LossNotScalarError: if the loss is not a single number; a ValueError.
        """
        parameter = next(model.parameters(), None)
        if parameter is not None:
            batch = to_device(batch, parameter.device)
        try:
            with self._autocast():
                loss = self._batch_loss(model, batch) if self._batch_loss else self._of_inputs_and_target(model, batch)
        except Exception as error:
            call = "batch_loss(model, batch)" if self._batch_loss else "loss_func(model(*inputs), target)"
            if self.called == OF_A_LEARNER:
                call = "learn.loss_func(model(*xb), *yb), without what the Learner's callbacks change in it,"
            elif self.called == OF_A_TRAINER:
                call = "compute_loss(model, inputs)"
            add_note(error, f"adaptbs called {call} on a batch of {describe_batch(batch)}.")
            raise
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise LossNotScalarError(
                f"{self.called}: the loss must be one number for the whole batch, got {got}: "
                "return the mean over its samples"
            )
        return loss

    def backward(self, model: nn.Module, batch: Any) -> None:
        """Run a forward and a backward pass, which adds to the parameters' `.grad`.

        Raises:
            ValueError: if the loss depends on no trainable parameter; as `__call__` does.
        """
        with torch.enable_grad():
            loss = self(model, batch)
            if not loss.requires_grad:
                raise ValueError(NO_GRADIENT)
            torch.autograd.backward(loss)

    def _of_inputs_and_target(self, model: nn.Module, batch: Any) -> Tensor:
        if not isinstance(batch, Sequence) or isinstance(batch, str) or len(batch) < 2:
            raise TypeError(
                f"loss_func= needs batches laid out as (*inputs, target), got {type(batch).__name__}: "
                "give batch_loss=, a function (model, batch) -> scalar, instead"
            )
        *inputs, target = batch
        assert self._loss_func is not None
        return self._loss_func(model(*inputs), target)


def weight_of_targets(loss_func: Any, targets: Sequence[Any]) -> float | None:
    """Total weight of the targets that are not ignored: the denominator of torch's CrossEntropyLoss and NLLLoss.

    None if it is another loss, a sum, or has no class targets. fastai's flattened losses keep torch's loss in `.func`.
    """
    inner = getattr(loss_func, "func", loss_func)
    if type(inner) not in (nn.CrossEntropyLoss, nn.NLLLoss) or getattr(loss_func, "reduction", None) != "mean":
        return None
    target = targets[0] if len(targets) == 1 else None
    if not isinstance(target, Tensor) or target.dtype.is_floating_point:
        return None
    counts = target.detach().as_subclass(Tensor)
    counts = counts[counts != inner.ignore_index]
    weight = inner.weight
    return float(counts.numel() if weight is None else weight[counts.long()].sum().item())


def summing(loss_func: Any) -> Any:
    """A copy of the loss that sums over the batch, if its mean may be over something other than samples; else None.

    Class weights and ignored targets change the denominator of the mean, so this concerns losses with an `ignore_index`
    and reduction "mean". fastai's flattened losses keep torch's loss in `.func`.
    """
    inner = getattr(loss_func, "func", loss_func)
    if getattr(loss_func, "reduction", None) != "mean" or not hasattr(inner, "ignore_index"):
        return None
    sums = copy.deepcopy(loss_func)
    sums.reduction = "sum"
    return sums

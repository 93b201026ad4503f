"""Compares each parameter's sum of terms with its gradient, at some of the measured steps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .passes import Step
from .terms import Unsupported

ROUNDING = 1e-3  # relative error of a parameter's sum of terms in float32
ROUNDING_ON_CUDA = 0.01  # where float32 is multiplied as TF32, which cuDNN does unless it is told not to
ROUNDING_IN_HALF = 0.05  # where the backward pass is in half precision
FLOOR = 0.1  # part of the rounding error that is relative to the whole gradient: some parameters' is nothing but that
MOST_LENGTHS = 8  # sets of batch lengths that are compared anew; a loop may have other lengths in every step
NOT_THE_SUM = (
    "the gradient of {} is not the sum of what its layers' calls add to it, as with a hook that changes it, with "
    "sums in half precision, or with a penalty on weights or on gradients in the loss (one on weights may be the "
    "optimizer's weight_decay= instead)"
)


class Comparisons:
    """Terms are compared at the first measured step of a model's state, and again as what they rest on may change.

    In batches of another length other tensors may look as if they had a row for each example. What a loss adds from
    some step on, such as a penalty, shows only later, as does a block whose weights begin at zero. So the terms are
    compared at new lengths, and after 1, 4, 16, 64, ... measured steps.

    The first comparison waits for the device, before anything rests on the terms. A later one on an accelerator makes
    the norms nan where it fails, and those after it. What it found is read by `doubt`, and from then on nothing is
    measured.

    Args:
        model: the model, for the names of its parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._measured: Counter[int] = Counter()  # steps, by the model's state
        self._lengths: dict[int, set[frozenset[int]]] = {}  # of batches that were compared, by the model's state
        self._next: tuple[int, frozenset[int]] = 0, frozenset()
        self._unread: tuple[list[nn.Parameter], Tensor, float] | None = None
        self._failed: Tensor | None = None  # True if an unread comparison failed, as the norms after it are no better
        self._why: str | None = None

    def is_due(self, state: int, lengths: Iterable[int]) -> bool:
        """True if the step that comes is to be compared.

        Args:
            state: the model's state, as a number.
            lengths: lengths that the step's batches may have.

        Raises:
            Unsupported: if an earlier comparison failed.
        """
        if self._why is not None:
            raise Unsupported(self._why)
        self._next = state, frozenset(lengths)
        count, known = self._measured[state], self._lengths.get(state, set())
        is_power_of_four = count.bit_count() == 1 and count.bit_length() % 2 == 1
        is_new = self._next[1] not in known and len(known) < MOST_LENGTHS
        return is_new or is_power_of_four

    @property
    def is_first(self) -> bool:
        """True until the terms of the model's state have been compared. A later step may be watched from its middle."""
        return self._next[0] not in self._lengths

    def take(self, step: Step, *, compare: bool, in_half: bool) -> Tensor:
        """The step's sum of squared terms, nan if a later comparison failed.

        Args:
            step: the measured step.
            compare: True if its terms were kept to be compared.
            in_half: True if a gradient was in half precision.

        Raises:
            Unsupported: if the comparison failed, as far as that is known without waiting.
        """
        state, lengths = self._next
        found = step.small()
        small = self._if_unbroken(found)
        self._measured[state] += 1
        if not compare:
            return small
        tolerance = ROUNDING_IN_HALF if in_half else ROUNDING_ON_CUDA if step.large().is_cuda else ROUNDING
        parameters, sizes = step.compared()
        if not self.is_first:
            if step.uses > 1:  # some of a layer's calls may have come before the step was watched
                return small
            self._lengths[state].add(lengths)
            # Of a step that had begun before it was watched, the gradient is another, and its norms are nan.
            sizes = torch.where(found.isfinite().to(sizes.device), sizes, torch.nan)
            self._unread = parameters, sizes, tolerance
            if sizes.is_cpu:
                self._raise_doubt()
                return small
            failed = _is_off(sizes, tolerance).any()
            self._failed = failed if self._failed is None else failed | self._failed
            return self._if_unbroken(small)
        sizes = sizes.cpu()  # waits for the device
        self._unread, whole = (parameters, sizes, tolerance), sizes[0].item()
        self._raise_doubt()
        if 0 < whole < math.inf:  # else the comparison shows nothing
            self._lengths[state] = {lengths}
        return small

    def _raise_doubt(self) -> None:
        if (why := self.doubt()) is not None:
            raise Unsupported(why)

    def _if_unbroken(self, small: Tensor) -> Tensor:
        return small if self._failed is None else torch.where(self._failed.to(small.device), torch.nan, small)

    def doubt(self) -> str | None:
        """The reason why the terms are not the gradient's; None if no comparison failed. May wait for the device."""
        if self._unread is not None:
            parameters, sizes, tolerance = self._unread
            self._unread = self._failed = None
            off = _is_off(sizes, tolerance).tolist()
            if any(off):
                odd = parameters[off.index(True)]
                name = next(name for name, p in self._model.named_parameters() if p is odd)
                self._why = NOT_THE_SUM.format(name)
        return self._why


def _is_off(sizes: Tensor, tolerance: float) -> Tensor:
    """True for each parameter whose gradient is not the sum of its terms.

    Args:
        sizes: norm of the whole gradient; then for each parameter the norms of the difference and of the gradient.
        tolerance: relative error that rounding may cause.
    """
    whole, errors, own = sizes[0], sizes[1::2], sizes[2::2]
    return (errors > tolerance * (own + FLOOR * whole)) & whole.isfinite()

"""Squared norms from the micro-batches that a training loop accumulates anyway, at hardly any cost."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ..checks import check_module, check_size
from ..model import trainable
from ..types import SquaredNorms
from .mean_gradient import square, together


class AccumulatedGradients:
    """Squared norms from a loop of your own that accumulates k micro-batches in each optimizer step.

    Hooks compare what each `loss.backward()` adds to `.grad` with the sum in `.grad`:

        watch = AccumulatedGradients(model)
        for i, (x, y) in enumerate(loader, 1):
            loss_func(model(x), y).backward()
            if i % k == 0:
                measured.append(watch.norms(len(x)))  # clipping and unscaling may come before or after it
                optimizer.step()
                optimizer.zero_grad()
        watch.close()

    With g_i the gradient that pass i adds, small = mean |g_i|^2 and large = |sum g_i|^2 / k^2, at b and k b samples.
    That is `GradientPool`'s estimate, unbiased for the same reason. A factor on the loss (1/k, a sum, a loss scale)
    leaves B_simple as it is; |G|^2 and tr(Sigma) carry that factor squared.

    A parameter that several reentrant checkpoints (`use_reentrant=True`) use is added to several times in one pass, and
    each would count as a pass: give these `use_reentrant=False`.

    The hooks are on the parameters that are trainable when the object is made, until `close()`.

    Args:
        model: the model that the loop trains.

    Raises:
        TypeError: if `model` is no module.
    """

    def __init__(self, model: nn.Module) -> None:
        check_module(model)
        self._reset()
        self._handles = []
        for i, parameter in enumerate(trainable(model)):
            added, became = partial(self._added, i), partial(self._became, i)
            self._handles.append(parameter.register_hook(added))  # type: ignore[no-untyped-call]
            self._handles.append(parameter.register_post_accumulate_grad_hook(became))  # type: ignore[no-untyped-call]

    def norms(self, size: int) -> SquaredNorms | None:
        """Squared norms of the passes since the last call; None if there were fewer than two.

        They are nan if `.grad` was neither None nor zero when the first of these passes began.

        Args:
            size: b, samples of each micro-batch. All must have the same size.

        Raises:
            TypeError, ValueError: if `size` is not an integer of at least 1.
        """
        check_size("size", size)
        passes = max((len(squares) for squares in self._squares.values()), default=0)
        squares, totals, clean = self._squares, self._totals, self._clean
        self._reset()
        if passes < 2:
            return None
        small = together([s for each in squares.values() for s in each]).sum() / passes
        large = together(list(totals.values())).sum() / passes**2
        return SquaredNorms(size, torch.where(together(clean).all(), small, torch.nan), passes * size, large)

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _reset(self) -> None:
        self._pending: dict[int, Tensor] = {}
        self._squares: dict[int, list[Tensor]] = {}  # |what each pass added|^2, by parameter
        self._totals: dict[int, Tensor] = {}  # |.grad|^2 after the latest pass, by parameter
        self._clean: list[Tensor] = []

    def _added(self, i: int, gradient: Tensor) -> None:
        # Only pending: `torch.autograd.grad` calls this hook too, but adds to no `.grad`, so `_became` does not follow.
        self._pending[i] = square(gradient)

    def _became(self, i: int, parameter: Tensor) -> None:
        assert parameter.grad is not None
        total = square(parameter.grad)
        if i not in self._totals:
            # Relative, since a gradient's square may be as small as any tolerance.
            self._clean.append(torch.isclose(total, self._pending[i], atol=0.0) | ~total.isfinite())
        self._squares.setdefault(i, []).append(self._pending.pop(i))
        self._totals[i] = total

"""Squared norms for nothing: from the backward passes that a training loop accumulates anyway."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ..model import trainable
from ..types import SquaredNorms
from .mean_gradient import square, together


class AccumulatedGradients:
    """Watches `loss.backward()` add up in `.grad`, and compares what was added with what became of it.

    For a loop of one's own that accumulates k micro-batches to a step:

        watch = AccumulatedGradients(model)
        for i, (x, y) in enumerate(loader, 1):
            loss_func(model(x), y).backward()
            if i % k == 0:
                measured.append(watch.norms(len(x)))  # before or after clipping and unscaling
                optimizer.step()
                optimizer.zero_grad()
        watch.close()

    Whether the loss is divided by k, summed or scaled makes no difference to B_simple; |G|^2 and tr(Sigma) carry that
    factor squared. Hooks on the parameters that train when it is made do it, until `close()`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._reset()
        self._handles = []
        for i, parameter in enumerate(trainable(model)):
            added, became = partial(self._added, i), partial(self._became, i)
            self._handles.append(parameter.register_hook(added))  # type: ignore[no-untyped-call]
            self._handles.append(parameter.register_post_accumulate_grad_hook(became))  # type: ignore[no-untyped-call]

    def norms(self, size: int) -> SquaredNorms | None:
        """The four numbers of the passes since the last call; None if they were fewer than two.

        They come out as nan if `.grad` was not empty (zero or None) when the first of the passes began.

        Args:
            size: b, samples of each micro-batch; all must have the same.
        """
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
        self._squares: dict[int, list[Tensor]] = {}  # of what each pass added, by parameter
        self._totals: dict[int, Tensor] = {}  # of what `.grad` has become
        self._clean: list[Tensor] = []

    def _added(self, i: int, gradient: Tensor) -> None:
        self._pending[i] = square(gradient)  # (`torch.autograd.grad` comes by here too, but adds to no `.grad`)

    def _became(self, i: int, parameter: Tensor) -> None:
        assert parameter.grad is not None
        total = square(parameter.grad)
        if i not in self._totals:
            self._clean.append(torch.isclose(total, self._pending[i]) | ~total.isfinite())
        self._squares.setdefault(i, []).append(self._pending.pop(i))
        self._totals[i] = total

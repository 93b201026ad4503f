"""Squared norms for nothing: each rank's own gradient against the one that all of them take their step with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from ..model import trainable
from ..ranks import Ranks
from ..types import SquaredNorms
from .mean_gradient import dense, square, together

HOPS = 4  # callbacks deep: DistributedDataParallel's last one is queued within those that its hooks queue


def waits_for_nobody(model: nn.Module) -> nn.Module | None:
    """The module whose passes wait for no other rank, between two steps of training; None where there is none.

    DistributedDataParallel's hooks expect nothing until its own forward pass has been called.
    """
    if any(isinstance(m, nn.SyncBatchNorm) for m in model.modules()):
        return None
    if isinstance(model, DistributedDataParallel):
        return None if getattr(model, "static_graph", False) else model.module
    return model


class RankGradients:
    """Watches `loss.backward()` between `arm` and `norms`, as the small batch of an estimate; all ranks are the large.

    A hook on each parameter sees what a backward pass adds to `.grad`, before anything is reduced. What the average is
    depends on who makes it:

    - DistributedDataParallel has put it into `.grad` when `backward()` returns. Its norm is taken just before, so that
      clipping comes later, and all that ranks exchange is two numbers.
    - Where the loop averages by itself, or with `static_graph=True`, when that comes about is not known. There the
      ranks' gradients are copied and averaged here once more: one more all-reduce of the gradient's size.

    Args:
        model: that the loop trains, wrapped or not; with the wrapped one measuring is free.
        ranks: connected.
        passes: backward passes that make an optimizer step. Where there are several, their sum is kept: a copy of the
            gradient while a step is measured.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, passes: int = 1) -> None:
        self._model, self._ranks = model, ranks
        self._averages = isinstance(model, DistributedDataParallel) and not getattr(model, "static_graph", False)
        self._copies = passes > 1 or not self._averages
        self._handles: list[RemovableHandle] = []
        self._reset()

    def arm(self, ends_step: Callable[[], bool]) -> None:
        """Watch from now on, until `disarm`.

        Args:
            ends_step: asked within a backward pass, whether the optimizer's step comes after it.
        """
        self._reset()
        self._parameters, self._ends_step = trainable(self._model), ends_step
        for i, parameter in enumerate(self._parameters):
            self._handles.append(parameter.register_hook(partial(self._added, i)))  # type: ignore[no-untyped-call]

    def norms(self, size: int) -> SquaredNorms:
        """The four numbers, on the device, the same on each rank; collective.

        They are nan where a rank made no backward pass, or `.grad` was not empty (zero or None) before the first, or
        DistributedDataParallel was kept from averaging.

        Args:
            size: b, samples of a rank's step.
        """
        first = self._parameters[0]
        nan = torch.tensor(torch.nan, device=first.device)
        parts = [square(g) for g in self._sums.values()] if self._copies else list(self._squares.values())
        small = torch.where(together(self._clean).all(), together(parts).sum(), nan) if parts else nan
        if self._averages:
            large = self._large if self._large is not None else nan
            small, large = self._ranks.mean(torch.stack([small.double(), large.to(small.device).double()])).unbind()
        else:
            zeros = (dense(self._sums.get(i, torch.zeros_like(p))) for i, p in enumerate(self._parameters))
            flat = torch.cat([*(g.flatten().to(first.device, torch.float32) for g in zeros), small.float().reshape(1)])
            mean = self._ranks.mean(flat)
            small, large = mean[-1].double(), mean[:-1].double().square().sum()
        return SquaredNorms(size, small, size * self._ranks.world_size, large)

    def disarm(self) -> None:
        """Watch no longer, and keep nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._reset()

    def _reset(self) -> None:
        self._squares: dict[int, Tensor] = {}  # of what one pass added, by parameter
        self._sums: dict[int, Tensor] = {}  # of what several added
        self._clean: list[Tensor] = []
        self._large: Tensor | None = None
        self._queued = False

    def _added(self, i: int, gradient: Tensor) -> None:
        gradient, parameter = gradient.detach(), self._parameters[i]
        if i not in self._squares:
            before = parameter.grad
            self._clean.append(square(before) == 0 if before is not None else torch.ones((), dtype=torch.bool))
            self._squares[i] = square(gradient)
        elif not self._copies:  # two backward passes in a step: from the next on their sum is kept
            self._copies_from_now_on()
        if self._copies:
            self._sums[i] = self._sums[i] + gradient if i in self._sums else gradient.clone()
        if self._averages and not self._queued and self._ends_step():
            self._queued = True
            _queue(partial(self._averaged, HOPS))

    def _copies_from_now_on(self) -> None:
        self._copies = True
        self._clean.append(torch.zeros((), dtype=torch.bool))  # (what the first pass added is not known any more)
        self._sums = {i: square for i, square in self._squares.items()}  # placeholders, for `norms` to come out as nan

    def _averaged(self, hops: int) -> None:
        if hops:
            _queue(partial(self._averaged, hops - 1))
            return
        self._queued = False  # (the next pass of this step, if there is one, has the last word)
        present = [p.grad for p in self._parameters if p.grad is not None]
        if getattr(self._model, "require_backward_grad_sync", True) and present:
            self._large = together([square(g) for g in present]).sum()


def _queue(callback: Callable[[], None]) -> None:
    """Let it be called at the end of the backward pass under way, after what has been queued before."""
    engine: Any = torch.autograd.Variable._execution_engine
    engine.queue_callback(callback)

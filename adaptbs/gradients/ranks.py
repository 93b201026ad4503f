"""Squared norms from each rank's own gradient and the average of all ranks, at hardly any cost."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from ..model import trainable
from ..ranks import Ranks
from ..types import SquaredNorms
from .after_backward import after_backward
from .fsdp import is_sharded
from .halves import TEMPORARY
from .mean_gradient import dense, gradient_bytes, square, together

HOPS = 4  # callbacks that queue one another, so that ours runs after DistributedDataParallel's nested ones


def waits_for_nobody(model: nn.Module) -> nn.Module | None:
    """The module to run between two training steps without waiting for other ranks; None if there is none.

    For DistributedDataParallel it is the wrapped module: the wrapper's hooks wait for nothing until the wrapper's own
    forward pass has been called. There is none with SyncBatchNorm, `static_graph=True` or `fully_shard`.
    """
    if is_sharded(model) or any(isinstance(m, nn.SyncBatchNorm) for m in model.modules()):
        return None
    if isinstance(model, DistributedDataParallel):
        return None if getattr(model, "static_graph", False) else model.module
    return model


class RankGradients:
    """Squared norms from the gradients of the `world_size` ranks in one optimizer step, by watching `loss.backward()`.

    With g_r the gradient of rank r's b samples, small = mean |g_r|^2 at b samples, and large = |mean g_r|^2 at
    world_size * b samples. This is `GradientPool` with n = world_size. It is unbiased because the ranks draw different
    samples and have the same weights. A factor on the loss leaves B_simple as it is. Backward passes between `arm` and
    `norms` count.

    A hook on each parameter sees what a backward pass adds to `.grad`, before anything is reduced. The average comes
    from one of two places:

    - DistributedDataParallel has put it into `.grad` by the time `backward()` returns. Its norm is taken just before,
      so clipping does not affect it, and the ranks exchange only two numbers.
    - If the loop averages by itself, or with `static_graph=True`, the moment of averaging is not known. A communication
      hook may compress what it averages. Then the ranks' gradients are copied and averaged here again, which costs one
      more all-reduce of the gradient's size.

    Args:
        model: the model that the loop trains, wrapped in DistributedDataParallel or not. Wrapped, measuring costs
            almost nothing.
        ranks: the ranks, connected.
        passes: number of backward passes in an optimizer step. With several, their sum is kept, which takes a copy of
            the gradient while a step is measured.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, passes: int = 1) -> None:
        self._model, self._ranks, self._sums_passes = model, ranks, passes > 1
        self._handles: list[RemovableHandle] = []
        self._reset()

    def arm(self, ends_step: Callable[[], bool]) -> None:
        """Start watching, until `disarm`.

        Args:
            ends_step: called within a backward pass; returns True if the optimizer's step follows that pass.
        """
        self._reset()
        self._averages = _averages(self._model)  # a hook may be registered at any time
        self._copies = self._sums_passes or not self._averages
        self._parameters, self._ends_step = trainable(self._model), ends_step
        for i, parameter in enumerate(self._parameters):
            self._handles.append(parameter.register_hook(partial(self._added, i)))  # type: ignore[no-untyped-call]

    def norms(self, size: int) -> SquaredNorms:
        """Squared norms, on the device, the same on each rank. Collective: all ranks must call it.

        They are nan if a rank made no backward pass, if `.grad` was neither None nor zero before the first pass, or if
        DistributedDataParallel did not average.

        Args:
            size: b, samples of one rank in the step.
        """
        first = self._parameters[0]
        nan = torch.full((), torch.nan, device=first.device)  # a number from the host would be waited for
        squares = [square(g) for g in self._sums.values()] if self._copies else list(self._squares.values())
        small = together(squares).sum() if squares and not self._is_lost else nan
        if self._clean:
            small = torch.where(together(self._clean).all().to(small.device), small, torch.nan)
        if self._averages:
            large = self._large if self._large is not None else nan
            small, large = self._ranks.mean(torch.stack([small.double(), large.to(small.device).double()])).unbind()
        else:
            zeros = (dense(self._sums.get(i, torch.zeros_like(p))) for i, p in enumerate(self._parameters))
            flat = torch.cat([*(g.flatten().to(first.device, torch.float32) for g in zeros), small.float().reshape(1)])
            mean = self._ranks.mean(flat)
            small, large = mean[-1].double(), torch.linalg.vector_norm(mean[:-1], dtype=torch.float64).square()
        return SquaredNorms(size, small, size * self._ranks.world_size, large)

    @property
    def bytes_beside_step(self) -> int:
        """Bytes that a measured step may hold beyond another.

        These are the copied sums of the rank's gradients, the flat tensor and its mean if the ranks average here, and a
        few temporary tensors as large as one parameter's gradient.
        """
        parameters = trainable(self._model)
        whole, largest = gradient_bytes(parameters)
        averaging = 0 if self._averages else 2 * sum(4 * p.numel() for p in parameters)
        return self._copies * whole + averaging + TEMPORARY * largest

    def watching(self, size: int) -> AbstractContextManager[None]:
        """A context for a trial of `size` samples. It watches nothing, because the other ranks would wait."""
        return nullcontext()

    def disarm(self) -> None:
        """Stop watching and drop what has been seen."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._reset()

    def _reset(self) -> None:
        self._squares: dict[int, Tensor] = {}  # |what the first pass added|^2, by parameter
        self._sums: dict[int, Tensor] = {}  # sum of what all passes added, by parameter
        self._clean: list[Tensor] = []  # True for each `.grad` that was zero, not None, before the first pass
        self._is_lost = False  # True if a gradient that would be needed is gone
        self._large: Tensor | None = None
        self._queued = False

    def _added(self, i: int, gradient: Tensor) -> None:
        gradient, parameter = gradient.detach(), self._parameters[i]
        if i not in self._squares:
            if (before := parameter.grad) is not None:
                self._clean.append(square(before) == 0)
            self._squares[i] = square(gradient)
        elif not self._copies:  # a second backward pass in a step that was expected to have one
            self._copies_from_now_on()
        if self._copies:
            self._sums[i] = self._sums[i] + gradient if i in self._sums else gradient.clone()
        if self._averages and not self._queued and self._ends_step():
            self._queued = True
            after_backward(partial(self._averaged, HOPS))

    def _copies_from_now_on(self) -> None:
        # The first pass's gradient is gone, so this step cannot be measured: `norms` returns nan. From the next step on
        # the sum of all passes is kept. The squares only stand in for the missing sums.
        self._copies = self._sums_passes = self._is_lost = True
        self._sums = dict(self._squares)

    def _averaged(self, hops: int) -> None:
        if hops:
            after_backward(partial(self._averaged, hops - 1))
            return
        self._queued = False  # a later pass of this step would queue it again and replace the result
        present = [p.grad for p in self._parameters if p.grad is not None]
        if getattr(self._model, "require_backward_grad_sync", True) and present:
            self._large = together([square(g) for g in present]).sum()


def _averages(model: nn.Module) -> bool:
    """True if the mean over ranks is in `.grad` when a backward pass ends, and nothing has compressed it."""
    if not isinstance(model, DistributedDataParallel) or getattr(model, "static_graph", False):
        return False
    return not getattr(model, "_comm_hooks", ())

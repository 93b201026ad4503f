"""Squared norms of models that `fully_shard` (FSDP2) splits over ranks, by watching its reduce-scatter."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ..ranks import Ranks
from ..types import SquaredNorms
from .mean_gradient import square, together

log = logging.getLogger(__name__)

GROUPS = "_fsdp_param_groups"  # earlier versions of torch have a single group, under another name
ALTERNATIVE = "or wrap the model in torch.nn.parallel.DistributedDataParallel, or train with torch's own DataLoader"


class ShardedGradients:
    """Squared norms from the gradients of the ranks in one optimizer step, of a model under `fully_shard`.

    With g_r the gradient of rank r's b samples, small = mean |g_r|^2 at b samples, and large = |mean g_r|^2 at n b
    samples, with n the ranks that shards are spread over. That is `RankGradients`'s estimate, unbiased for the same
    reason. No rank ever holds the whole mean, but a reduce-scatter is given all of this rank's gradient and returns its
    shard of the mean. The squared norms of the shards add up to that of the whole. So nothing is copied or reduced
    again, clipping comes later, and the ranks exchange two numbers. A factor on the loss leaves B_simple as it is. So
    does the one that FSDP divides a float16 gradient by before it is reduced.

    The number of reduce-scatters of each group of parameters between `arm` and `norms` shows how the loop accumulates:

    - One, in the pass that the optimizer's step follows, as under `set_requires_gradient_sync(False)` for the others:
      it is given the sum of all passes.
    - As many as passes: each pass is an estimate with b/passes samples a rank, and their mean counts.
    - Any other number gives no norms, with one warning.

    With a mesh of two dimensions (HSDP), the mean is the one within a group that shards, averaged over groups.

    `FSDPModule.set_custom_reduce_scatter` replaces the reduce-scatter while a step is watched. The replaced one and the
    divisor of gradients are read from private attributes: `_get_fsdp_state()`, `_fsdp_param_groups`,
    `_reduce_scatter_comm`, `gradient_divide_factor`, `fsdp_params`, `_module_info` and `mesh_info` (torch 2.13).

    Args:
        model: a model for which `why_shards_are_unseen` is None.
        ranks: the ranks, connected.
    """

    bytes_beside_step = 0  # norms are read from the buffers that are reduced anyway

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self._model, self._ranks = model, ranks
        self._watched: list[tuple[Any, _Watched]] = []  # by module of FSDP
        self._warned = False
        self._reset()

    def arm(self, ends_step: Callable[[], bool]) -> None:
        """Start watching, until `disarm`.

        Args:
            ends_step: called within a backward pass; returns True if the optimizer's step follows that pass.
        """
        self.disarm()
        self._ends_step = ends_step
        for module, (group,) in _sharded_modules(self._model):
            watched = _Watched(group, self._saw)
            module.set_custom_reduce_scatter(watched)
            self._watched.append((module, watched))
            self._spread = group.mesh_info.shard_mesh_size  # n, ranks that shards are spread over

    def norms(self, size: int, passes: int = 1) -> SquaredNorms:
        """Squared norms, on the device, the same on each rank. Collective: all ranks must call it.

        They are nan if a rank made no backward pass, or if gradients were reduced at other passes than those that
        `ShardedGradients` tells apart.

        Args:
            size: b, samples of one rank in the step.
            passes: backward passes of the step, each of as many samples.
        """
        reductions = max(self._counts.values(), default=0)
        if self._is_clear(reductions, passes):
            _use_here(self._small + self._large)
            # A pass brings a share of the step's gradient, 1/reductions, as the loop has divided its loss.
            both = torch.stack([together(part).sum().double() for part in (self._small, self._large)]) * reductions
        else:
            reductions = 1
            device = next(self._model.parameters()).device
            both = torch.full((2,), torch.nan, dtype=torch.float64, device=device)
        small, shard = self._ranks.mean(both).unbind()
        b = size // reductions
        return SquaredNorms(b, small, b * self._spread, shard * self._spread)

    def watching(self, size: int) -> AbstractContextManager[None]:
        """A context for a trial of `size` samples. It watches nothing, because the other ranks would wait."""
        return nullcontext()

    def disarm(self) -> None:
        """Stop watching, put the reduce-scatters back, and drop what has been seen."""
        for module, watched in self._watched:
            if watched.is_in_place:  # else somebody has set another one since
                module.set_custom_reduce_scatter(watched.inner)
        self._watched = []
        self._reset()

    def _reset(self) -> None:
        self._small: list[Tensor] = []  # |this rank's gradient|^2 of each reduce-scatter
        self._large: list[Tensor] = []  # |this rank's shard of the mean|^2
        self._counts: Counter[int] = Counter()  # reduce-scatters, by group of parameters
        self._last: set[int] = set()  # groups that were reduced in the pass that ends the step

    def _saw(self, group: Any, small: Tensor, large: Tensor) -> None:
        self._small.append(small)
        self._large.append(large)
        self._counts[id(group)] += 1
        if self._ends_step():
            self._last.add(id(group))

    def _is_clear(self, reductions: int, passes: int) -> bool:
        """True if it is known to which passes each of the gradients belongs."""
        if not reductions:
            return False
        each = set(self._counts.values()) == {reductions} and self._last == set(self._counts)
        clear = each and reductions in (1, passes)
        if not clear and not self._warned:
            self._warned = True
            log.warning(
                "gradients were reduced %s times in an optimizer step of %d backward passes, so the step is not "
                "measured. Reduce them at every pass or at the last one alone (set_requires_gradient_sync), and say "
                "accumulation_steps=. This is said once.",
                " and ".join(str(count) for count in sorted(set(self._counts.values()))), passes,
            )  # fmt: skip
        return clear


class _Watched:
    """A reduce-scatter of one group of parameters that also takes the norms of its input and its output.

    Args:
        group: FSDP's group of parameters. It is private, like its attributes.
        saw: called with the group and the two squared norms.

    Attributes:
        inner: the reduce-scatter that it replaces and calls.
    """

    def __init__(self, group: Any, saw: Callable[[Any, Tensor, Tensor], None]) -> None:
        self._group, self._saw = group, saw
        self.inner = group._reduce_scatter_comm

    @property
    def is_in_place(self) -> bool:
        """True while the group uses this reduce-scatter."""
        return self._group._reduce_scatter_comm is self

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Allocate memory for a gradient."""
        allocated: Tensor = self.inner.allocate(size, dtype=dtype, device=device)
        return allocated

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> Any:
        """Reduce `input_tensor`, and report the squared norms."""
        small = square(input_tensor)
        work = self.inner(
            output_tensor=output_tensor, input_tensor=input_tensor, group=group, op=op, async_op=async_op
        )  # fmt: skip
        if work is not None and async_op:
            work.wait()
        self._saw(self._group, small, square(output_tensor) * self._to_mean(op, group.size()) ** 2)
        return work

    def _to_mean(self, op: Any, ranks: int) -> float:
        """Factor that turns the result of the reduction by `op` into the mean over ranks."""
        if op == dist.ReduceOp.AVG:
            return 1.0
        if op == dist.ReduceOp.SUM:
            return 1.0 / ranks
        return float(self._group.gradient_divide_factor) / ranks  # NCCL's PREMUL_SUM multiplies by 1 / this factor


def is_sharded(model: nn.Module) -> bool:
    """True if `fully_shard` has been applied to a part of the model."""
    return any(True for _ in _fsdp_modules(model))


def why_shards_are_unseen(model: nn.Module, world_size: int) -> str | None:
    """The reason why a model under `fully_shard` cannot be measured, and the remedy; None if it can.

    Args:
        model: the model.
        world_size: number of ranks that get different samples.
    """
    for module in _fsdp_modules(model):
        if not hasattr(module, "set_custom_reduce_scatter") or not hasattr(module._get_fsdp_state(), GROUPS):
            return f"the reduce-scatter of this torch's fully_shard cannot be watched: use torch 2.13, {ALTERNATIVE}"
    modules = list(_sharded_modules(model))
    if any(len(groups) > 1 for _, groups in modules):
        return f"a module is sharded over several meshes at once: shard it over one, {ALTERNATIVE}"
    own = {id(p) for _, groups in modules for group in groups for p in _parameters(group)}
    outside = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in own]
    if outside:
        return (
            f"fully_shard does not reduce the gradient of {outside[0]}: apply it to the whole model, without "
            f"ignored_params=, {ALTERNATIVE}"
        )
    for _, (group,) in modules:
        mesh, shards = group.mesh_info.mesh, getattr(group.mesh_info, "shard_mesh_size", 1)
        if mesh.size() != world_size or shards == 1:
            return (
                f"it is sharded over {shards} of {mesh.size()} ranks, and the loader has {world_size}: shard over all "
                f"ranks and over more than one, without tensor parallelism, {ALTERNATIVE}"
            )
    if len({group.mesh_info.shard_mesh_size for _, (group,) in modules}) > 1:
        return f"its modules are sharded over different numbers of ranks: shard them over one mesh, {ALTERNATIVE}"
    return None


def _fsdp_modules(model: nn.Module) -> Iterator[Any]:
    """The modules that `fully_shard` was applied to. Imports nothing, because most models have none."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return (module for module in model.modules() if kind is not None and isinstance(module, kind))


def _sharded_modules(model: nn.Module) -> Iterator[tuple[Any, list[Any]]]:
    """The modules that reduce parameters of their own, and their groups of parameters."""
    for module in _fsdp_modules(model):
        groups = getattr(module._get_fsdp_state(), GROUPS)
        if reducing := [group for group in groups if any(p.requires_grad for p in _parameters(group))]:
            yield module, reducing


def _parameters(group: Any) -> list[nn.Parameter]:
    """The parameters of a group as they are in the model now. `to_empty` and others replace them."""
    infos = [p._module_info for p in group.fsdp_params]
    return [getattr(info.module, info.param_name) for info in infos]


def _use_here(scalars: Sequence[Tensor]) -> None:
    """Keep the memory of scalars made on the reduce-scatter's stream until this stream has read them."""
    for scalar in scalars:
        if scalar.is_cuda:
            scalar.record_stream(torch.cuda.current_stream(scalar.device))

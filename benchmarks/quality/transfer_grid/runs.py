"""Runs in a stack: from the start at the base batch, and on from there at k times it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adaptbs import one_cycle
from benchmarks.quality.transfer_grid import models
from benchmarks.quality.transfer_grid.models import Batch
from benchmarks.quality.transfer_grid.optimizers import Hyperparameters, State, begin
from benchmarks.quality.transfer_grid.rules import KEPT, PER_ROOT, PER_SAMPLE, Kind, Rule, decayed, lr_factor
from benchmarks.quality.transfer_grid.tasks import Task

TRUNK, BRANCH = 400, 960  # steps at the base batch before the branch, and after it: 30 at k = 32
STEPS = TRUNK + BRANCH
EPS = 1e-8
LOOKS = tuple(TRUNK + BRANCH * i // 6 for i in range(6))  # steps of the run at the base batch where phi is measured
SAMPLES = 512  # for one measurement of phi, from each seed


def generator(*names: object) -> torch.Generator:
    """The random numbers of what has these names; no other has the same."""
    return torch.Generator().manual_seed(zlib.crc32(repr(names).encode()))


class Setting(NamedTuple):
    """The learning rate at the peak of the schedule, and the weight decay, both at the base batch."""

    lr: float
    weight_decay: float


class Stack:
    """R runs of a task under one optimizer, all at the same batch size.

    Args:
        task, kind: the task and the optimizer.
        state: of the R runs.
        draws: the source of batches; one that is shared by every len(draws)-th run, so that rules are compared on the
            same batches.
    """

    def __init__(self, task: Task, kind: Kind, state: State, draws: Sequence[torch.Generator]) -> None:
        self.task, self.kind, self.state, self._draws = task, kind, state, draws

    def step(self, samples: int, by: Hyperparameters) -> None:
        """One step of every run."""
        drawn = [self.task.draw(samples, draw) for draw in self._draws]
        repeats = len(self.state.weights) // len(self._draws)
        batch = tuple(torch.stack(seeds).repeat(repeats, *[1] * seeds[0].dim()) for seeds in zip(*drawn, strict=True))
        self.state = self.kind.step(self.state, gradients(self.task, self.state.weights, batch), by)


def initial(task: Task, seeds: Sequence[object]) -> Tensor:
    """The weights that the runs of these seeds start from, (R, P)."""
    started = (models.start(task.shapes, generator("start", task.name, seed)) for seed in seeds)
    return torch.stack([torch.cat([p.flatten() for p in parameters.values()]) for parameters in started])


def parameters(task: Task, weights: Tensor) -> dict[str, Tensor]:
    """The parameters of R runs from their weights (R, P)."""
    sizes = [torch.Size(shape).numel() for shape in task.shapes.values()]
    parts = zip(task.shapes.items(), weights.split(sizes, dim=1), strict=True)
    return {name: part.reshape(-1, *shape) for (name, shape), part in parts}


def gradients(task: Task, weights: Tensor, batch: Batch) -> Tensor:
    """The gradient of each run's mean loss, (R, P)."""
    leaves = {name: p.requires_grad_() for name, p in parameters(task, weights.detach()).items()}
    found = torch.autograd.grad(task.loss(leaves, batch).sum(), list(leaves.values()))
    return torch.cat([g.flatten(1) for g in found], dim=1)


@torch.no_grad()
def held_out_losses(task: Task, weights: Tensor) -> list[float]:
    """The held-out loss of each run; not finite where it diverged."""
    batch = task.held_out()
    return [task.loss(parameters(task, one[None]), batch).item() for one in weights]


def base(kind: Kind, settings: Sequence[Setting]) -> Hyperparameters:
    """The hyperparameters at the base batch and the peak of the schedule, for runs at these settings."""
    lr, decay = torch.tensor(settings, dtype=torch.float32).T[..., None]
    return Hyperparameters(lr, *(torch.full_like(lr, value) for value in (*kind.betas, EPS)), decay)


def trained(
    task: Task, kind: Kind, seeds: Sequence[object], settings: Sequence[Setting], stops: Sequence[int] = (STEPS,)
) -> list[State]:
    """The states, at each of these steps, of runs at the base batch."""
    stack = Stack(task, kind, begin(initial(task, seeds)), [generator("trunk", task.name, seed) for seed in seeds])
    peak, states = base(kind, settings), []
    for step in range(stops[-1] + 1):
        if step in stops:
            states.append(stack.state)
        if step < stops[-1]:
            stack.step(task.base_batch, peak._replace(lr=peak.lr * one_cycle(step / STEPS, 1.0)))
    return states


def b_simple(task: Task, weights: Tensor, draw: torch.Generator) -> float:
    """B_simple = tr(Sigma)/|G|^2 at these weights (R, P), pooled over the runs; from the gradient of each sample.

    At most the number of samples, because a |G|^2 that is smaller than its own noise is not known.
    """
    traces = squares = 0.0
    for one in weights:
        batch = tuple(part[:, None] for part in task.draw(SAMPLES, draw))
        each = gradients(task, one.expand(SAMPLES, -1), batch)
        mean_sq, sq_mean = each.square().sum(1).mean().item(), each.mean(0).square().sum().item()
        trace = (mean_sq - sq_mean) * SAMPLES / (SAMPLES - 1)
        traces, squares = traces + trace, squares + sq_mean - trace / SAMPLES
    return traces / max(squares, traces / (SAMPLES * len(weights)))


def over_the_branch(values: Sequence[float], k: int) -> Tensor:
    """What was measured at LOOKS, at each step of a branch at k, between them in the logarithm."""
    logs = torch.tensor(values, dtype=torch.float64).log()
    place = torch.arange(BRANCH // k, dtype=torch.float64) * k / (LOOKS[1] - LOOKS[0])
    left = place.long().clamp(max=len(values) - 2)
    share = (place - left).clamp(max=1)
    return torch.lerp(logs[left], logs[left + 1], share).exp().float()


def scaled(kind: Kind, rules: Sequence[Rule], k: int, phi: Tensor, base_batch: int) -> list[Hyperparameters]:
    """The factors of lr and weight decay, and the betas and eps, of each rule at each step of a branch at k.

    Args:
        phi: B_simple at each step.
    """
    form_factors = {form: lr_factor(form, k, phi, base_batch) for form in {rule.lr for rule in rules}}
    lr = torch.stack([form_factors[rule.lr] for rule in rules])  # (rules, steps)

    def of_each(what: Callable[[Rule], float]) -> Tensor:
        return torch.tensor([what(rule) for rule in rules], dtype=phi.dtype)[:, None]

    beta1 = of_each(lambda rule: decayed(kind.betas[0], rule.beta1, k))
    beta2 = of_each(lambda rule: decayed(kind.betas[1], rule.beta2, k))
    eps = of_each(lambda rule: EPS / k**0.5 if rule.eps == PER_ROOT else EPS)
    decay = torch.where(of_each(lambda rule: rule.weight_decay == PER_SAMPLE) > 0, k / lr, 1.0)
    lr = lr * torch.where(of_each(lambda rule: rule.beta1.endswith(KEPT)) > 0, (1 - beta1) / (1 - kind.betas[0]), 1.0)
    return [Hyperparameters(lr[:, i, None], beta1, beta2, eps, decay[:, i, None]) for i in range(len(phi))]


def at(peak: Hyperparameters, by: Hyperparameters) -> Hyperparameters:
    """The hyperparameters of a step: those of the base batch at this point of the schedule, by their factors."""
    return by._replace(lr=peak.lr * by.lr, weight_decay=peak.weight_decay * by.weight_decay)


def branched(
    task: Task, kind: Kind, rules: Sequence[Rule], k: int, *, trunk: State, setting: Setting, seeds: Sequence[int],
    phi: Sequence[float],
) -> list[list[float]]:
    """Held-out losses of each rule and seed after the rest of the run at k times the base batch.

    Args:
        trunk: the states of the seeds' runs at the branch.
        setting: at the base batch.
        phi: B_simple at LOOKS.
    """  # fmt: skip
    runs = torch.arange(len(seeds)).repeat(len(rules))
    draws = [generator("branch", task.name, seed, k) for seed in seeds]
    stack = Stack(task, kind, trunk.taken(runs), draws)
    peak = base(kind, [setting])
    for i, by in enumerate(scaled(kind, rules, k, over_the_branch(phi, k), task.base_batch)):
        each = Hyperparameters(*(part.repeat_interleave(len(seeds), dim=0) for part in by))
        now = peak._replace(lr=peak.lr * one_cycle((TRUNK + i * k) / STEPS, 1.0))
        stack.step(task.base_batch * k, at(now, each))
    losses = held_out_losses(task, stack.state.weights)
    return [losses[i : i + len(seeds)] for i in range(0, len(losses), len(seeds))]

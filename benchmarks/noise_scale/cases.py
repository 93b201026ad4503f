"""The models, data and moments of training on which estimators are compared, and a run that starts there."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from adaptbs.demo import flights as demo_flights
from adaptbs.model.modules import has_batch_norm
from benchmarks.common import mnist

BATCH = 128
PARTS = 4  # micro-batches, as with gradient accumulation
STEPS = 40  # of a window
WARM_UP, ONE_CYCLE_STEPS, DIVISOR = 0.25, 1200, 25  # fastai's one-cycle: lr/25 up to lr over a quarter of the run
BEFORE_PEAK = 20  # a window of 40 steps that starts so many before the peak has it in its middle
PEAK = int(WARM_UP * ONE_CYCLE_STEPS) - BEFORE_PEAK


@dataclass(frozen=True)
class Task:
    """A model at its start, a loss, data (*inputs, target), and how many samples truth takes at a step of a window."""

    make: Callable[[], nn.Module]
    loss_func: Callable[..., Tensor]
    data: tuple[Tensor, ...]
    truth_samples: int


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def cnn() -> nn.Module:
    """The fastai course's MNIST CNN (2019, lesson 7): five convolutions of stride 2, each with BatchNorm."""
    channels = [1, 8, 16, 32, 16, 10]
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(channels):
        layers += [nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*layers[:-1], nn.Flatten())


def mnist_tasks(folder: Path | None) -> dict[str, Task]:
    data, loss_func = mnist.load(folder), nn.functional.cross_entropy
    return {"MLP": Task(mlp, loss_func, data, 3000), "CNN": Task(cnn, loss_func, data, 960)}


def flights_task() -> Task:
    """The demo's model (fastai's TabularModel, no BatchNorm, no dropout) on every 5th day of its data."""
    path = demo_flights.data_file()
    if path is None:
        raise SystemExit('the flights are not there: pip install "adaptbs[demo]"')
    flights = demo_flights.prepare(demo_flights.read_flights(path, quick=True))
    table = flights.table.train
    data = tuple(
        torch.tensor(columns.to_numpy(copy=True)).to(kind)
        for columns, kind in ((table.cats, torch.long), (table.conts, torch.float), (table.ys, torch.float))
    )
    model = demo_flights.make_learner(flights, BATCH, seed=0).model.train()
    return Task(lambda: copy.deepcopy(model), nn.functional.mse_loss, data, 3000)


@dataclass(frozen=True)
class Case:
    """A moment of training: so many steps of an optimizer from the start. One-cycle runs have `lr` as their peak."""

    task: str
    optimizer: str
    lr: float
    step: int

    @property
    def name(self) -> str:
        if self.optimizer == "one-cycle":
            return f"{self.task}, one-cycle peak {self.lr:g}"
        return f"{self.task}, {self.optimizer} {self.lr:g}, step {self.step}"

    def lr_at(self, step: int) -> float:
        if self.optimizer != "one-cycle":
            return self.lr
        peak = WARM_UP * ONE_CYCLE_STEPS
        rising = step < peak
        p = step / peak if rising else (step - peak) / (ONE_CYCLE_STEPS - peak)
        low = self.lr / DIVISOR if rising else 0.0
        return low + (self.lr - low) * (1 - math.cos(math.pi * (p if rising else 1 + p))) / 2


CASES = [
    *(Case("MLP", "SGD", 0.01, step) for step in (0, 300, 1000)),
    *(Case("MLP", "Adam", 0.001, step) for step in (0, 300, 1000)),
    Case("MLP", "one-cycle", 0.01, PEAK),
    *(Case("CNN", "SGD", 0.01, step) for step in (0, 300, 1000)),
    *(Case("CNN", "Adam", 0.001, step) for step in (0, 300, 1000)),
    Case("CNN", "one-cycle", 0.01, PEAK),
    *(Case("flights", "Adam", 0.001, step) for step in (0, 300, 1000)),
    Case("flights", "one-cycle", 0.01, PEAK),
]


class Run:
    """A training run that can be copied at any moment, optimizer state and all."""

    def __init__(self, case: Case, task: Task, seed: int) -> None:
        torch.manual_seed(seed)
        self.case, self.task, self.done = case, task, 0
        self.model = task.make().train()
        kind = torch.optim.SGD if case.optimizer == "SGD" else torch.optim.Adam
        self.optimizer = kind(self.model.parameters(), case.lr)

    def copy(self) -> Run:
        twin = copy.copy(self)
        twin.model, twin.optimizer = copy.deepcopy((self.model, self.optimizer))
        return twin

    @property
    def couples_samples(self) -> bool:
        """Whether one sample's loss depends on the others of its batch."""
        return has_batch_norm(self.model)

    def step(self, batch: list[Tensor]) -> Tensor:
        """A training step; returns the gradient it used, flat."""
        gradient = self.gradient(batch)
        self.update()
        return gradient

    def gradient(self, batch: list[Tensor]) -> Tensor:
        """The gradient that a step on this batch would use, flat; `.grad` holds it too."""
        self.backward(batch)
        return torch.cat([p.grad.flatten() for p in self.model.parameters()])

    def backward(self, batch: list[Tensor]) -> None:
        *inputs, target = batch
        self.optimizer.zero_grad()
        self.task.loss_func(self.model(*inputs), target).backward()

    def update(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.case.lr_at(self.done)
        self.optimizer.step()
        self.done += 1


def batches(task: Task, size: int, generator: torch.Generator) -> Iterator[list[Tensor]]:
    """Batches without replacement, epoch after epoch, without an epoch's short last one."""
    n = len(task.data[0])
    while True:
        order = torch.randperm(n, generator=generator)
        for chosen in order[: n // size * size].split(size):
            yield [t[chosen] for t in task.data]


def trained(case: Case, task: Task, seed: int) -> Run:
    """The run at the case's moment."""
    run = Run(case, task, seed)
    source = batches(task, BATCH, torch.Generator().manual_seed(seed))
    while run.done < case.step:
        run.step(next(source))
    return run

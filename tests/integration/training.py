"""A plain training loop as a user writes it, and what it saw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.model import has_batch_norm


class Numbered(Dataset):
    """Random examples that say which they are: (x, y, index)."""

    def __init__(self, n: int = 1000) -> None:
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(n, 8, generator=generator)
        self.y = self.x.sum(1, keepdim=True) + torch.randn(n, 1, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        return self.x[i], self.y[i], i


class Streamed(IterableDataset):
    """The same, read from the beginning each time."""

    def __init__(self, data: Numbered) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        return (self.data[i] for i in range(len(self.data)))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))


def loss_of(model: nn.Module, batch) -> Tensor:
    x, y, _ = batch
    return nn.functional.mse_loss(model(x), y)


@dataclass
class Run:
    """What a training run saw, batch by batch."""

    epochs: list[list[int]] = field(default_factory=list)  # indices of each epoch, in order
    sizes: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)  # seen before each batch
    lrs: list[float] = field(default_factory=list)  # of the optimizer outside its step
    used: list[float] = field(default_factory=list)  # inside its step
    weights: Tensor = None


def train(model, optimizer, loader, epochs: int, scheduler=None, per_epoch: bool = False, every: int = 1) -> Run:
    """Train; step the scheduler after every `every`-th batch, or once an epoch."""
    run = Run()
    watch = optimizer.register_step_pre_hook(lambda *_: run.used.append(float(optimizer.param_groups[0]["lr"])))
    seen = 0
    for _ in range(epochs):
        run.epochs.append([])
        for i, batch in enumerate(loader):
            run.samples.append(seen)
            run.sizes.append(len(batch[2]))
            run.lrs.append(float(optimizer.param_groups[0]["lr"]))
            run.epochs[-1] += batch[2].tolist()
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            seen += len(batch[2])
            if scheduler is not None and not per_epoch and (i + 1) % every == 0:
                scheduler.step()
        if scheduler is not None and per_epoch:
            scheduler.step()
    watch.remove()
    run.weights = torch.cat([p.detach().flatten() for p in model.state_dict().values()])
    return run


def adaptive(dataset, model, optimizer, batch_size: int = 16, **arguments) -> AdaptiveDataLoader:
    """A loader that is given the loss only if the model cannot be measured without."""
    needed = has_batch_norm(model) and arguments.get("overhead") != 0
    arguments = {"shuffle": True, "epochs": 2} | ({"batch_loss": loss_of} if needed else {}) | arguments
    return AdaptiveDataLoader(dataset, batch_size, model=model, optimizer=optimizer, **arguments)


def stock(dataset, batch_size: int = 16, **arguments) -> DataLoader:
    return DataLoader(dataset, batch_size, **({"shuffle": True} | arguments))


def doubling(every: int = 3):
    """A target that doubles the batch every few decisions."""
    calls = 0

    def target(noise_scale, batch_size: int, progress: float) -> int:
        nonlocal calls
        calls += 1
        return batch_size * 2 if calls % every == 0 else batch_size

    return target


FORCED = {"overhead": 0, "decide_every": 1e-6, "max_batch_size": 256}

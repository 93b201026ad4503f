"""What to do with the state of optimizer and BatchNorm when the batch grows: leave it, or change it with the batch?

    python -m benchmarks.quality.optimizer_state [--seeds 12] [--epochs 16] [--quick]

A small convolutional network with BatchNorm learns scikit-learn's digits, one label in ten being wrong, by one-cycle
and from a batch of 16 that is doubled at each fifth of the run, to 256, all hyperparameters following
(docs/transfer.md). What is compared is done at each doubling, k being new size / old size, or throughout:

    left alone          nothing is done
    first moments to 0  SGD's momentum buffer, Adam's m
    v / k               Adam's v, as its expectation falls where noise dominates the gradient
    BatchNorm's         its momentum m becomes 1 - (1 - m)^K, K = batch / base batch, so that the running statistics
                        reach back over as many samples as before: what adaptbs does

The same seeds, weights and order of samples for all of them. Figures are ratios to "left alone" of the same seed: of
the held-out loss at the end (without wrong labels), and of the training loss over the 8 steps from each doubling on,
where what is done wrong would show first. A fixed batch of 16 is there for scale. Results go to
results/optimizer_state.json; those of another number of epochs to optimizer_state_EPOCHS_epochs.json.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from adaptbs import AdaptiveDataLoader
from benchmarks.common.machine import save

START, LARGEST, EPOCHS, TRAIN = 16, 256, 16, 1400
AFTER = 8  # steps from a doubling on that are looked at
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD with momentum": lambda params: SGD(params, 0.02, momentum=0.9),
    "Adam": lambda params: Adam(params, 2e-3, betas=(0.9, 0.99)),
}


def network() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


def scaled(optimizer: Optimizer, name: str, factor: float) -> None:
    for state in optimizer.state.values():
        if state.get(name) is not None:
            state[name].mul_(factor)


def zero_first_moments(optimizer: Optimizer, k: float) -> None:
    for name in ("momentum_buffer", "exp_avg"):
        scaled(optimizer, name, 0.0)


def rescale_second_moments(optimizer: Optimizer, k: float) -> None:
    scaled(optimizer, "exp_avg_sq", 1 / k)


def nothing(optimizer: Optimizer, k: float) -> None:
    pass


BATCH_NORM = "BatchNorm's momentum"
#: what is done to the optimizer at each doubling
CHOICES: dict[str, Callable[[Optimizer, float], None]] = {
    "left alone": nothing,
    "first moments to 0": zero_first_moments,
    "v / k": rescale_second_moments,
    BATCH_NORM: nothing,
}
FIXED = "fixed batch of 16"


def doublings(noise_scale: Any, batch_size: int, progress: float) -> int:
    return min(LARGEST, START * 2 ** int(5 * progress))


def split() -> tuple[TensorDataset, tuple[Tensor, Tensor]]:
    """(training data, one label in ten drawn anew; held-out images and labels)."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(y), generator=generator)
    x, y = x[order], y[order]
    wrong = torch.rand(TRAIN, generator=generator) < 0.1
    noisy = torch.where(wrong, torch.randint(10, (TRAIN,), generator=generator), y[:TRAIN])
    return TensorDataset(x[:TRAIN], noisy), (x[TRAIN:], y[TRAIN:])


def run(optimizer_name: str, choice: str, seed: int, epochs: int = EPOCHS) -> dict[str, float]:
    """(held-out loss at the end, mean training loss after doublings, steps)."""
    data, (held_x, held_y) = split()
    torch.manual_seed(seed)
    model = network()
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    steps = epochs * -(-TRAIN // START)
    peaks = [group["lr"] for group in optimizer.param_groups]
    scheduler = OneCycleLR(optimizer, peaks, total_steps=steps, pct_start=0.25, cycle_momentum=False)
    generator = torch.Generator().manual_seed(seed)
    loader: DataLoader[Any] = DataLoader(data, START, shuffle=True, generator=generator)
    if choice != FIXED:
        loader = AdaptiveDataLoader(
            data, START, shuffle=True, generator=generator, model=model, optimizer=optimizer, scheduler=scheduler,
            target=doublings, max_batch_size=LARGEST, overhead=0, step_time=(1.0, 0.0),
        )  # fmt: skip
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum, before, since, after, made = norms[0].momentum, 1.0, AFTER, [], 0
    for _ in range(epochs):
        for x, y in loader:
            k = loader.training_run.scale().k if choice != FIXED else 1.0
            if k != before:
                CHOICES[choice](optimizer, k / before)
                before, since = k, 0
            for norm in norms:  # where the loader lets it follow, what is set here goes before
                norm.momentum = 1 - (1 - momentum) ** k if choice == BATCH_NORM else momentum
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            made += 1
            if since < AFTER:
                after.append(loss.detach())
                since += 1
    model.eval()
    with torch.no_grad():
        held_out = F.cross_entropy(model(held_x), held_y).item()
    return {"loss": held_out, "after": torch.stack(after).mean().item() if after else math.nan, "steps": made}


def compared(runs: list[dict[str, float]], reference: list[dict[str, float]], what: str) -> dict[str, Any]:
    """Ratios to the run of the same seed: geometric mean, standard deviation over seeds and standard error, in logs."""
    logs = [math.log(a[what] / b[what]) for a, b in zip(runs, reference, strict=True)]
    spread = statistics.stdev(logs) if len(logs) > 1 else 0.0
    return {"ratio": math.exp(statistics.mean(logs)), "sd": spread, "se": spread / len(logs) ** 0.5}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="short runs have less time to settle")
    parser.add_argument("--quick", action="store_true", help="two seeds, to try it; nothing is saved")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(2 if args.quick else args.seeds)
    rows, begin = [], time.perf_counter()
    for name in OPTIMIZERS:
        choices = [choice for choice in CHOICES if name == "Adam" or choice != "v / k"]
        runs: dict[str, list[dict[str, float]]] = {choice: [] for choice in (*choices, FIXED)}
        for seed in seeds:
            for choice, made in runs.items():
                made.append(run(name, choice, seed, args.epochs))
        reference = runs["left alone"]
        for choice, made in runs.items():
            row: dict[str, Any] = {"optimizer": name, "choice": choice}
            row["steps"] = statistics.mean(r["steps"] for r in made)
            row["loss_mean"] = statistics.mean(r["loss"] for r in made)
            row["loss"] = compared(made, reference, "loss")
            if choice != FIXED:
                row["after"] = compared(made, reference, "after")
            rows.append(row)
            print(row, flush=True)
    print(f"{time.perf_counter() - begin:.0f} s")
    if not args.quick:
        file = "optimizer_state" if args.epochs == EPOCHS else f"optimizer_state_{args.epochs}_epochs"
        shape = {"start": START, "largest": LARGEST, "epochs": args.epochs, "seeds": len(seeds)}
        print(save(file, {**shape, "rows": rows}))


if __name__ == "__main__":
    main()

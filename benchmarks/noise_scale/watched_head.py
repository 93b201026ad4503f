"""Can a BatchNorm model's noise scale be watched on its head, with halves of the whole only now and then?

    python -m benchmarks.noise_scale.watched_head --mnist DIR        (about 15 minutes)

The head is what lies behind the last BatchNorm, or behind a layer without a formula: the last linear layer. At frozen
weights, three moments in each twentieth of a run, all batches of a random part of MNIST (at 14 x 14 pixels) are
measured: the whole model by halves, the head example by example as the step would tell it, and the whole model from a
batch and the next. Two batch sizes, since a batch grows. `watched_ways.py` then asks which way of pooling needs how
many of them. Results go to results/watched_head.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, relu

from benchmarks.common.machine import RESULTS, save
from benchmarks.common.mnist import load
from benchmarks.noise_scale.truth import short
from benchmarks.noise_scale.watched_ways import KEEPING, LATER, WAYS, Moment, Window, explained, judged, truth

BATCH, SIZES = 128, (128, 512)  # of training; of measuring
WINDOWS, MOMENTS, SEED = 20, 3, 2018


class Block(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm beside a shortcut (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.long = nn.Sequential(
            nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(),
            nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o),
        )  # fmt: skip
        same = i == o and stride == 1
        self.short = nn.Identity() if same else nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.long(x) + self.short(x))


def resnet() -> nn.Sequential:
    stem = [nn.Conv2d(1, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()]
    blocks = [Block(6, 6, 1), Block(6, 12, 2), Block(12, 24, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))


def cnn() -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise([1, 8, 16, 32]):
        layers += [nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 2 * 2, 10))


def mlp() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for i, o in itertools.pairwise([196, 64, 64]):
        layers += [nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


class Rows(nn.Module):
    """An LSTM over an image's rows; its last output. No formula gives its examples' terms, but nothing ties them."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(14, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x[:, 0])[0][:, -1]


def lstm() -> nn.Sequential:
    return nn.Sequential(Rows(), nn.Linear(32, 10))


#: name: (model, optimizer, steps of the run, samples that are measured)
RUNS = {
    "ResNet, SGD one-cycle": (resnet, "one-cycle", 1200, 6_000),
    "CNN, Adam": (cnn, "Adam", 2400, 20_000),
    "MLP, Adam": (mlp, "Adam", 2400, 40_000),
    "LSTM, Adam": (lstm, "Adam", 2400, 10_000),
}


def gradient(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the mean loss, flat; the head's parameters come last."""
    grads = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    return torch.cat([g.flatten() for g in grads])


def step(model: nn.Sequential, x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """The same, and n sum |c_i|^2 of the head's terms, which the training step's own pass would tell."""
    features = model[:-1](x)
    logits = model[-1](features)
    loss = cross_entropy(logits, y)
    d, *grads = torch.autograd.grad(loss, [logits, *model.parameters()])
    squares = (features.detach().square().sum(1) + 1) * d.square().sum(1)
    return torch.cat([g.flatten() for g in grads]), len(x) * float(squares.sum())


def measured(model: nn.Sequential, x: Tensor, y: Tensor, size: int, generator: torch.Generator) -> Moment:
    """All disjoint batches of so many samples at the weights of now. BatchNorm's buffers are put back."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    head, half = sum(p.numel() for p in model[-1].parameters()), size // 2
    order = torch.randperm(len(x), generator=generator)
    halves, head_rows, next_batch, previous = [], [], [], None
    sums = np.zeros(2)  # of |g|^2 of half batches: whole, head
    total: Tensor = torch.zeros(1, dtype=torch.double)
    for chosen in order[: len(x) // size * size].split(size):
        whole, mean_square = step(model, x[chosen], y[chosen])
        a, b = (gradient(model, x[part], y[part]) for part in chosen.split(half))
        halves.append([half * float((a - b).square().sum()) / 2, float(a @ b)])
        square = float(whole[-head:].square().sum())
        pairs = (size * square - mean_square) / (size - 1)  # the mean of g_i . g_j over i != j
        head_rows.append([mean_square - pairs, pairs])
        if previous is not None:
            next_batch.append([size * float((whole - previous).square().sum()) / 2, float(whole @ previous)])
        previous = whole
        sums += [float(g.square().sum()) for g in (torch.stack([a, b]), torch.stack([a, b])[:, -head:])]
        total = total + a.double() + b.double()
    model.load_state_dict(before)
    m = 2 * len(halves)  # half batches
    squares = np.array([float(total.square().sum()), float(total[-head:].square().sum())])
    pairs = (squares - sums) / (m * (m - 1))
    trace = half * (sums / m - pairs)
    true = np.stack([trace, pairs], 1)
    return Moment(np.array(halves), np.array(head_rows), np.array(next_batch), true[0], true[1])


def windows_of(name: str, x: Tensor, y: Tensor) -> dict[int, list[Window]]:
    """Train, and stop for measuring three times in each twentieth of the run; by batch size."""
    make, kind, steps, samples = RUNS[name]
    torch.manual_seed(SEED)
    model = make().train()
    generator = torch.Generator().manual_seed(SEED)
    part = torch.randperm(len(x), generator=generator)[:samples]
    if kind == "Adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        schedule = None
    else:
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, pct_start=0.25)
    stops = {int(steps * (i + 0.5) / (WINDOWS * MOMENTS)) for i in range(WINDOWS * MOMENTS)}
    found: dict[int, list[Moment]] = {size: [] for size in SIZES}
    epochs = (torch.randperm(len(x), generator=generator).split(BATCH) for _ in itertools.count())
    batches = (chosen for epoch in epochs for chosen in epoch if len(chosen) == BATCH)
    for number, chosen in enumerate(itertools.islice(batches, steps)):
        if number in stops:
            for size, moments in found.items():
                moments.append(measured(model, x[part], y[part], size, generator))
        optimizer.zero_grad()
        cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return {
        size: [moments[i : i + MOMENTS] for i in range(0, len(moments), MOMENTS)] for size, moments in found.items()
    }


def summary(name: str, found: dict[int, list[Window]]) -> dict:
    """What a run's windows come to; a way that keeps something is also judged when the batch has just grown."""
    rng, (first, *_, last) = np.random.default_rng(SEED), SIZES
    sizes = {}
    for size, windows in found.items():
        whole, head, told = (np.array([truth(w, what) for w in windows]) for what in ("true", "true_head", "head"))
        scales = {key: rows[:, 0] / rows[:, 1] for key, rows in (("whole", whole), ("head", head), ("told", told))}
        sizes[str(size)] = {
            "noise_scale": [float(f"{v:.4g}") for v in scales["whole"]],
            "factor": [round(float(v), 3) for v in scales["whole"] / scales["told"]],
            "factor_of_true_head": [round(float(v), 3) for v in scales["whole"] / scales["head"]],
            "explained": round(float(np.mean([explained(m) for w in windows[LATER:] for m in w])), 3),
            "ways": {way: short(row) for way, row in judged(windows, windows, list(WAYS), rng).items()},
        }
    grown = judged(found[last], found[first], KEEPING, rng)
    _, _, steps, samples = RUNS[name]
    about = {"run": name, "steps": steps, "samples": samples}
    return {**about, "sizes": sizes, "grown": {way: short(row) for way, row in grown.items()}}


def update(row: dict) -> Path:
    """Save a run's row beside those of other runs."""
    path = RESULTS / "watched_head.json"
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = {known["run"]: known for known in [*old, row]}
    kept = [rows[name] for name in RUNS if name in rows]
    return save("watched_head", {"windows": WINDOWS, "moments": MOMENTS, "seed": SEED, "rows": kept})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's gzipped idx files; downloaded if left out")
    parser.add_argument("--run", default="", help="only runs whose name has this in it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    x, y = load(args.mnist)
    x = avg_pool2d(x, 2)
    for name in RUNS:
        if args.run in name:
            print(name, update(summary(name, windows_of(name, x, y))), flush=True)


if __name__ == "__main__":
    main()

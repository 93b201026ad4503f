"""What a batch costs in an AdaptiveDataLoader whose size stays, against a stock DataLoader.

    python -m benchmarks.cost.loader [--rounds 24] [--quick] [--only WORD] [--profile]

A round is one short epoch of each loader, one after the other, in an order that turns with every round: a stock
DataLoader; another, as a control; and adaptbs's with `max_batch_size` equal to the start. All draw the same samples
from generators of the same seed. The ratio of a round is the loader's seconds over the stock's; the control's shows
how far the machine can be believed. Medians over rounds, with the quartiles, go to results/loader.json. Every few
rounds all is built anew: where objects happen to lie in memory makes one loop faster than its copy while they live.

Three kinds of data: tensors in memory (`TensorDataset`), images made on the fly by two workers, and dicts that the
default collate puts together. Each four times: the loader alone, iterated over and nothing done with the batches,
with `overhead=0`; the same in very short epochs, whose beginning costs something too; in a training loop, with
`overhead=0`, so that what is added to the optimizer's step counts as well; and in a training loop with `overhead` at
its default, where measuring is what costs, and may. The first three are planned to be 250 epochs long and stopped
early: the twenty decisions of a run weigh too much in a short one.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from adaptbs import AdaptiveDataLoader
from benchmarks.common.machine import save

BATCH_SIZE = 64
LONG = 250  # epochs planned, of which a few are run: twenty decisions a run would else be one every few batches
KINDS = ("stock", "control", "adaptive")


class Images(Dataset[Any]):
    """3 x 64 x 64 bytes made from the index, turned into floats and flipped: about what a small photo takes."""

    def __init__(self, samples: int) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = torch.arange(i, i + 3 * 64 * 64).to(torch.uint8).view(3, 64, 64)
        return (image.float() / 255 - 0.5).flip(-1), i % 10


class Records(Dataset[Any]):
    """Dicts of four entries, as loaders of text and tables deliver."""

    def __init__(self, samples: int) -> None:
        self.x, self.mask = torch.randn(samples, 32), torch.ones(samples, 32, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": self.x[i], "mask": self.mask[i], "weight": 1.0, "y": i % 10}


@dataclass(frozen=True)
class Case:
    """Data, and a model that is quick to train on them; `dataset` makes so many samples, of `steps` batches an epoch.

    The shorter a round, the less the machine changes within it; the longer, the less its beginning counts.
    """

    name: str
    dataset: Callable[[int], Dataset[Any]]
    model: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Any], Tensor]
    steps: int
    workers: int = 0


@dataclass(frozen=True)
class Use:
    """How the loader is used: whether a model trains, `arguments` of adaptbs's loader, batches of an epoch if few."""

    name: str
    trains: bool = False
    arguments: Mapping[str, Any] = field(default_factory=lambda: {"overhead": 0})
    steps: int | None = None


def mlp(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 7 * 7, 10),
    )  # fmt: skip


def loss_of_pair(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def loss_of_record(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch["x"] * batch["mask"]), batch["y"])


CASES = (
    Case(
        "TensorDataset", lambda n: TensorDataset(torch.randn(n, 32), torch.arange(n) % 10),
        lambda: mlp(32), loss_of_pair, 400,
    ),
    Case("images, 2 workers", Images, cnn, loss_of_pair, 100, workers=2),
    Case("dicts", Records, lambda: mlp(32), loss_of_record, 400),
)  # fmt: skip
USES = (
    Use("alone"),
    Use("alone, epochs of 40 batches", steps=40),
    Use("training, `overhead=0`", trains=True),
    Use("training, default", trains=True, arguments={}),
)


class Epochs:
    """One way of loading: an epoch at each call, and its seconds."""

    def __init__(self, case: Case, use: Use, kind: str, rounds: int) -> None:
        torch.manual_seed(0)
        self._case, self._trains, self._generator = case, use.trains, torch.Generator()
        dataset = case.dataset(BATCH_SIZE * (use.steps or case.steps))
        self._model = case.model()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), 1e-3)
        stock = {
            "shuffle": True, "generator": self._generator, "num_workers": case.workers,
            "persistent_workers": case.workers > 0,  # else an epoch so short would be all about starting them
        }  # fmt: skip
        if kind != "adaptive":
            self._loader = DataLoader(dataset, BATCH_SIZE, **stock)
            return
        self._loader = AdaptiveDataLoader(
            dataset, BATCH_SIZE, model=self._model, optimizer=self._optimizer, batch_loss=case.loss,
            epochs=rounds, max_batch_size=BATCH_SIZE, **stock, **use.arguments,
        )  # fmt: skip

    def __call__(self, seed: int) -> float:
        self._generator.manual_seed(seed)
        begin = time.perf_counter()
        for batch in self._loader:
            if self._trains:
                self._optimizer.zero_grad()
                self._case.loss(self._model, batch).backward()
                self._optimizer.step()
        return time.perf_counter() - begin


def compare(case: Case, use: Use, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, by kind."""
    # What is measured comes first of all and then rarely: such a run is to be longer.
    times = 8 if "overhead" in use.arguments else 2
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(times):
        for kind, values in compare_once(case, use, max(1, rounds // times)).items():
            seconds[kind] += values
    return seconds


def compare_once(case: Case, use: Use, rounds: int) -> dict[str, list[float]]:
    """The same, of objects built once."""
    warm = 1  # rounds: workers start, caches fill
    epochs = LONG if "overhead" in use.arguments else rounds + warm
    runs = {kind: Epochs(case, use, kind, epochs) for kind in KINDS}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    gc.collect()
    gc.freeze()  # a collection of all that torch has loaded would fall on one of them
    for i in range(rounds + warm):
        first = i % len(KINDS)
        turn = KINDS[first:] + KINDS[:first]
        for kind in turn if i % 2 else reversed(turn):
            seconds[kind].append(runs[kind](i))
    return {kind: values[warm:] for kind, values in seconds.items()}


def summary(seconds: dict[str, list[float]], steps: int) -> dict[str, Any]:
    """Medians over rounds of so many batches; a batch in microseconds."""
    per_batch = 1e6 / steps
    row: dict[str, Any] = {"stock_us": statistics.median(seconds["stock"]) * per_batch}
    for kind in KINDS[1:]:
        ratios = [ours / stock for ours, stock in zip(seconds[kind], seconds["stock"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        added = [ours - stock for ours, stock in zip(seconds[kind], seconds["stock"], strict=True)]
        row[kind] = {
            "ratio": middle, "quartiles": [low, high], "whole_run": sum(seconds[kind]) / sum(seconds["stock"]),
            "added_us": statistics.median(added) * per_batch,
        }  # fmt: skip
    return row


def profile(case: Case, use: Use, rounds: int) -> None:
    """Where the time of adaptbs's own files goes; a profiler makes small functions look dearer than they are."""
    run = Epochs(case, use, "adaptive", LONG)
    run(0)
    profiler = cProfile.Profile()
    profiler.enable()
    for i in range(rounds):
        run(i)
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats("adaptbs|step_hook", 14)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--quick", action="store_true", help="a few rounds, to try it; nothing is saved")
    parser.add_argument("--only", default="", help="cases whose name contains this; nothing is saved then")
    parser.add_argument("--profile", action="store_true", help="where adaptbs's time goes; nothing is saved")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rounds, rows = 6 if args.quick else args.rounds, []
    for case in CASES:
        for use in USES:
            if args.only not in case.name:
                continue
            if args.profile:
                profile(case, use, rounds)
                continue
            steps = use.steps or case.steps
            row = summary(compare(case, use, rounds), steps)
            rows.append({"data": case.name, "use": use.name, "epoch_steps": steps, **row})
            shown = "   ".join(f"{k} {row[k]['ratio']:.4f} ({row[k]['added_us']:+.1f} us)" for k in KINDS[1:])
            print(f"{case.name}, {use.name}: {row['stock_us']:.0f} us a batch   {shown}", flush=True)
    if not (args.quick or args.only or args.profile):
        print(save("loader", {"batch_size": BATCH_SIZE, "rounds": rounds, "rows": rows}))


if __name__ == "__main__":
    main()

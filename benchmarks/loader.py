"""What a batch costs in an AdaptiveDataLoader whose size stays, against a stock DataLoader.

    python benchmarks/loader.py [--rounds 64] [--quick] [--only WORD] [--profile]

A round is one short epoch of each loader, one after the other, in an order that turns with every round: a stock
DataLoader; another, as a control; and adaptbs's with `max_batch_size` equal to the start. All draw the same samples
from generators of the same seed. The ratio of a round is the loader's seconds over the stock's; the control's shows
how far the machine can be believed. Medians over rounds, with the quartiles, go to results/loader.json. Every few
rounds all is built anew: where objects happen to lie in memory makes one loop faster than its copy while they live.

Three kinds of data: tensors in memory (`TensorDataset`), images made on the fly by two workers, and dicts that the
default collate puts together. Each three times: the loader alone, iterated over and nothing done with the batches,
with `overhead=0`; in a training loop, with `overhead=0`, so that what is added to the optimizer's step counts as well;
and in a training loop with `overhead` at its default, where measuring is what costs, and may. The first two
are planned to be 10,000 steps long and stopped early: the twenty decisions of a run weigh too much in a short one.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from machine import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from adaptbs import AdaptiveDataLoader

BATCH_SIZE = 64
EPOCH_STEPS = 40  # the shorter a round, the less the machine changes within it
SAMPLES = BATCH_SIZE * EPOCH_STEPS
LONG = 250  # epochs planned, of which a few are run: twenty decisions a run would else be one every few batches
KINDS = ("stock", "control", "adaptive")


class Images(Dataset[Any]):
    """3 x 64 x 64 bytes made from the index, turned into floats and flipped: about what a small photo takes."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = torch.arange(i, i + 3 * 64 * 64).to(torch.uint8).view(3, 64, 64)
        return (image.float() / 255 - 0.5).flip(-1), i % 10


class Records(Dataset[Any]):
    """Dicts of four entries, as loaders of text and tables deliver."""

    def __init__(self) -> None:
        self.x, self.mask = torch.randn(SAMPLES, 32), torch.ones(SAMPLES, 32, dtype=torch.bool)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": self.x[i], "mask": self.mask[i], "weight": 1.0, "y": i % 10}


@dataclass(frozen=True)
class Case:
    name: str
    dataset: Callable[[], Dataset[Any]]
    model: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Any], Tensor]
    workers: int = 0


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
        "TensorDataset", lambda: TensorDataset(torch.randn(SAMPLES, 32), torch.arange(SAMPLES) % 10),
        lambda: mlp(32), loss_of_pair,
    ),
    Case("images, 2 workers", Images, cnn, loss_of_pair, workers=2),
    Case("dicts", Records, lambda: mlp(32), loss_of_record),
)  # fmt: skip
#: (how the loader is used, whether a model trains, arguments of adaptbs's loader)
USES: tuple[tuple[str, bool, dict[str, Any]], ...] = (
    ("alone", False, {"overhead": 0}),
    ("training, `overhead=0`", True, {"overhead": 0}),
    ("training, default", True, {}),
)


class Epochs:
    """One way of loading: an epoch at each call, and its seconds."""

    def __init__(self, case: Case, kind: str, trains: bool, rounds: int, arguments: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self._case, self._trains, self._generator = case, trains, torch.Generator()
        self._model = case.model()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), 1e-3)
        stock = {
            "shuffle": True, "generator": self._generator, "num_workers": case.workers,
            "persistent_workers": case.workers > 0,  # else an epoch so short would be all about starting them
        }  # fmt: skip
        if kind != "adaptive":
            self._loader = DataLoader(case.dataset(), BATCH_SIZE, **stock)
            return
        self._loader = AdaptiveDataLoader(
            case.dataset(), BATCH_SIZE, model=self._model, optimizer=self._optimizer, batch_loss=case.loss,
            epochs=rounds, max_batch_size=BATCH_SIZE, **stock, **arguments,
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


def compare(case: Case, trains: bool, arguments: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, by kind."""
    # What is measured comes first of all and then rarely: such a run is to be longer.
    times = 16 if "overhead" in arguments else 3
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(times):
        for kind, values in compare_once(case, trains, arguments, max(1, rounds // times)).items():
            seconds[kind] += values
    return seconds


def compare_once(case: Case, trains: bool, arguments: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """The same, of objects built once."""
    warm = 2  # rounds: workers start, caches fill
    epochs = LONG if "overhead" in arguments else rounds + warm
    runs = {kind: Epochs(case, kind, trains, epochs, arguments) for kind in KINDS}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    gc.collect()
    gc.freeze()  # a collection of all that torch has loaded would fall on one of them
    for i in range(rounds + warm):
        first = i % len(KINDS)
        turn = KINDS[first:] + KINDS[:first]
        for kind in turn if i % 2 else reversed(turn):
            seconds[kind].append(runs[kind](i))
    return {kind: values[warm:] for kind, values in seconds.items()}


def summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians over rounds; a batch in microseconds."""
    per_batch = 1e6 / EPOCH_STEPS
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


def profile(case: Case, trains: bool, arguments: dict[str, Any], rounds: int) -> None:
    """Where the time of adaptbs's own files goes; a profiler makes small functions look dearer than they are."""
    run = Epochs(case, "adaptive", trains, LONG, arguments)
    run(0)
    profiler = cProfile.Profile()
    profiler.enable()
    for i in range(rounds):
        run(i)
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats("adaptbs|step_hook", 14)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="a few rounds, to try it; nothing is saved")
    parser.add_argument("--only", default="", help="cases whose name contains this; nothing is saved then")
    parser.add_argument("--profile", action="store_true", help="where adaptbs's time goes; nothing is saved")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rounds, rows = 6 if args.quick else args.rounds, []
    for case in CASES:
        for use, trains, arguments in USES:
            if args.only not in case.name:
                continue
            if args.profile:
                profile(case, trains, arguments, rounds)
                continue
            row = summary(compare(case, trains, arguments, rounds))
            rows.append({"data": case.name, "use": use, **row})
            shown = "   ".join(f"{k} {row[k]['ratio']:.4f} ({row[k]['added_us']:+.1f} us)" for k in KINDS[1:])
            print(f"{case.name}, {use}: {row['stock_us']:.0f} us a batch   {shown}", flush=True)
    if not (args.quick or args.only or args.profile):
        print(save("loader", {"batch_size": BATCH_SIZE, "epoch_steps": EPOCH_STEPS, "rounds": rounds, "rows": rows}))


if __name__ == "__main__":
    main()

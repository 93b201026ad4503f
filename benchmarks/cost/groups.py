"""What setting the hyperparameters and giving them back costs a step, in parameter groups and in tensors.

    python -m benchmarks.cost.groups

An optimizer has made one step, and the batch is then four times the base batch, all hyperparameters following. Groups
have learning rates of their own, as for discriminative learning rates. Functions entered in Python are counted, those
of torch and fastai included; microseconds are the fastest of many, since the machine may have other work. Results go to
results/groups.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from fastai.optimizer import Adam as FastAdam
from fastai.optimizer import OptimWrapper
from torch import nn
from torch.optim import AdamW

from adaptbs.fastai.hyperparameters import FastaiStepHook
from adaptbs.hyperparameters import StepHook
from adaptbs.hyperparameters.transfer import HYPERPARAMETERS
from adaptbs.types import Scale
from benchmarks.common.machine import save

GROWN = Scale(4.0, 2.0)
GROUPS = (1, 3, 15, 100, 1000)
TENSORS = 5000


def weights(n: int) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.zeros(4)) for _ in range(n)]
    for p in made:
        p.grad = torch.ones(4)
    return made


def by_hook(optimizer: AdamW) -> Callable[[], None]:
    """A step's work on a torch optimizer, without the step."""
    hook = StepHook(optimizer, lambda: GROWN, HYPERPARAMETERS)

    def work() -> None:
        hook.scaler.scale(optimizer.param_groups, HYPERPARAMETERS, k=GROWN.k, lr_factor=GROWN.lr_factor)
        hook.scaler.restore()

    return work


def torch_groups(n: int) -> Callable[[], None]:
    optimizer = AdamW([{"params": [p], "lr": 1e-3 * (1 + i / n)} for i, p in enumerate(weights(n))])
    optimizer.step()
    return by_hook(optimizer)


def fastai_groups(n: int, wrapped: bool) -> Callable[[], None]:
    groups = [[p] for p in weights(n)]
    opt = OptimWrapper(groups, opt=AdamW, lr=1e-3) if wrapped else FastAdam(groups, lr=1e-3)
    if n > 1:
        opt.set_hyper("lr", slice(1e-4, 1e-3))
    opt.step()
    hook = FastaiStepHook(opt, HYPERPARAMETERS)

    def work() -> None:
        hook.scale(GROWN)
        hook.restore()

    return work


def last_of_many() -> Callable[[], None]:
    """One group, of whose tensors the last alone trains."""
    made = weights(TENSORS)
    for p in made[:-1]:
        p.grad = None
    optimizer = AdamW(made, 1e-3)
    optimizer.step()
    return by_hook(optimizer)


def calls(work: Callable[[], None]) -> int:
    """Functions that are entered in Python."""
    entered = 0

    def count(frame: Any, event: str, _: Any) -> None:
        nonlocal entered
        entered += event == "call"

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return entered - 1  # the work itself


def microseconds(work: Callable[[], None], times: int = 300) -> float:
    fastest = float("inf")
    for _ in range(times):
        begin = time.perf_counter()
        work()
        fastest = min(fastest, time.perf_counter() - begin)
    return fastest * 1e6


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    cases: dict[str, Callable[[], None]] = {f"AdamW, groups: {n}": torch_groups(n) for n in GROUPS}
    cases |= {f"fastai's Adam, groups: {n}": fastai_groups(n, wrapped=False) for n in GROUPS[:3]}
    cases |= {f"fastai's OptimWrapper of AdamW, groups: {n}": fastai_groups(n, wrapped=True) for n in GROUPS[:3]}
    cases[f"AdamW, a group of {TENSORS} tensors of which the last trains"] = last_of_many()
    rows = []
    for name, work in cases.items():
        work()  # the first looks at all groups
        rows.append({"case": name, "calls": calls(work), "us": round(microseconds(work), 1)})
        print(f"{name:60} {rows[-1]['calls']:4} calls {rows[-1]['us']:8.1f} us", flush=True)
    print(save("groups", {"k": GROWN.k, "rows": rows}))


if __name__ == "__main__":
    main()

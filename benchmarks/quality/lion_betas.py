"""Lion's betas as the batch grows: should they follow it, as those of Adam do, or stay?

    python -m benchmarks.quality.lion_betas [--seeds 8] [--quick]

The task, network and doublings of `benchmarks.quality.optimizer_state` (digits with BatchNorm, one label in ten wrong,
from 16 to 256) in half of its length, with a Lion of the user's own at three learning rates:

    betas follow        beta1^(k^(1/4)) and beta2^k, what adaptbs does
    betas stay          transfer=("lr", "weight_decay"), and BatchNorm's momentum following by hand, so that only the
                        betas differ
    fixed batch of 16   for scale

Held-out loss at the end, in ratio to "betas stay" of the same seed and rate. Results go to results/lion_betas.json.
The committed ones are of beta1^sqrt(k), what adaptbs did then.
"""

from __future__ import annotations

import argparse
import math
import statistics
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from adaptbs import AdaptiveDataLoader
from benchmarks.common.machine import save
from benchmarks.quality.optimizer_state import LARGEST, START, TRAIN, compared, doublings, network, split

EPOCHS, RATES = 8, (1e-4, 3e-4, 1e-3)
FOLLOW, STAY, FIXED = "betas follow", "betas stay", "fixed batch of 16"


class Lion(Optimizer):
    """Chen et al. 2023, arXiv:2302.06675."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.1):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - lr * group["weight_decay"]).sub_(lr * torch.sign(torch.lerp(p.grad, m, beta1)))
                m.lerp_(p.grad, 1 - beta2)


def run(lr: float, choice: str, seed: int) -> dict[str, float]:
    """Held-out loss at the end, and steps."""
    data, (held_x, held_y) = split()
    torch.manual_seed(seed)
    model = network()
    optimizer = Lion(model.parameters(), lr)
    steps = EPOCHS * -(-TRAIN // START)
    scheduler = OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.25, cycle_momentum=False)
    generator = torch.Generator().manual_seed(seed)
    loader: DataLoader[Any] = DataLoader(data, START, shuffle=True, generator=generator)
    if choice != FIXED:
        loader = AdaptiveDataLoader(
            data, START, shuffle=True, generator=generator, model=model, optimizer=optimizer, scheduler=scheduler,
            target=doublings, max_batch_size=LARGEST, overhead=0, step_time=(1.0, 0.0),
            transfer=("lr", "weight_decay") if choice == STAY else None,
        )  # fmt: skip
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum, made = norms[0].momentum, 0
    for _ in range(EPOCHS):
        for x, y in loader:
            k = loader.training_run.scale().k if choice != FIXED else 1.0
            for norm in norms:
                norm.momentum = 1 - (1 - momentum) ** k
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            made += 1
    model.eval()
    with torch.no_grad():
        return {"loss": F.cross_entropy(model(held_x), held_y).item(), "steps": made}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="two seeds, to try it; nothing is saved")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seeds, rows = range(2 if args.quick else args.seeds), []
    for lr in RATES:
        runs = {choice: [run(lr, choice, seed) for seed in seeds] for choice in (STAY, FOLLOW, FIXED)}
        for choice, made in runs.items():
            row: dict[str, Any] = {"lr": lr, "choice": choice, "steps": statistics.mean(r["steps"] for r in made)}
            row["loss_mean"] = statistics.mean(r["loss"] for r in made)
            row["loss"] = compared(made, runs[STAY], "loss")
            row["better"] = sum(math.log(a["loss"] / b["loss"]) < 0 for a, b in zip(made, runs[STAY], strict=True))
            rows.append(row)
            print(row, flush=True)
    if not args.quick:
        shape = {"start": START, "largest": LARGEST, "epochs": EPOCHS, "seeds": len(seeds)}
        print(save("lion_betas", {**shape, "rows": rows}))


if __name__ == "__main__":
    main()

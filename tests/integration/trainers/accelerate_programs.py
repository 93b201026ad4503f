"""A training loop as accelerate's documentation writes it, and what it saw: on one process, and on each of several."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DataLoaderConfiguration
from torch import distributed as dist
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from adaptbs.accelerate import adaptive
from tests.integration.training import Numbered

EPOCHS, BATCH = 4, 8
WHOLE, UNEVEN = 192, 203  # samples: of whole global batches, and not


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def dropping() -> nn.Module:
    """Draws from the global random state, so that it shows whether anybody else does."""
    return nn.Sequential(nn.Dropout(0.2), network())


def ramp(ranks: int, parts: int = 1) -> Callable[..., int]:
    """A target of 1, 2, 4 and 8 times the first step, by the share of the run done."""
    return lambda noise_scale, size, progress: BATCH * ranks * parts * 2 ** min(int(4 * progress), 3)


def growing(ranks: int, parts: int = 1, **others: Any) -> dict[str, Any]:
    return {
        "target": ramp(ranks, parts), "max_batch_size": 8 * BATCH, "step_time": (1e-3, 1e-5), "overhead": 0.5,
        "decide_every": 0.02, **others,
    }  # fmt: skip


def forget_accelerate() -> None:
    """Let the next Accelerator of this process be the first."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state() if hasattr(state, "_reset_state") else state._shared_state.clear()


def one_cycle(optimizer: Any, total: int) -> Any:
    return OneCycleLR(optimizer, 0.05, total_steps=total)


class Run:
    """The parts of a run, prepared.

    Args:
        way: "stock", "adaptive" (of the prepared loader) or "unprepared".
        parts: batches of an optimizer step.
        schedule: makes the scheduler from the optimizer and its steps.
        loader, configuration: arguments of the stock loader and the Accelerator.
        scaled: with a loss scale; `overflow` is the number of a batch whose gradients are not finite then.
        arguments: of `adaptive`; `said` stands for its `epochs`.
    """

    def __init__(
        self,
        way: str,
        *,
        samples: int = UNEVEN,
        parts: int = 1,
        epochs: int = EPOCHS,
        schedule: Callable[[Any, int], Any] = one_cycle,
        loader: dict[str, Any] | None = None,
        model: Callable[[], nn.Module] = network,
        configuration: dict[str, Any] | None = None,
        clip: float | None = None,
        scaled: bool = False,
        overflow: int | None = None,
        **arguments: Any,
    ) -> None:
        forget_accelerate()
        accelerator_of = dict(configuration or {})
        data = accelerator_of.pop("data", {})
        self.accelerator = Accelerator(
            cpu=True, gradient_accumulation_steps=parts, dataloader_config=DataLoaderConfiguration(**data),
            **accelerator_of,
        )  # fmt: skip
        if scaled:  # which an Accelerator makes by itself for float16 on a GPU alone
            self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        ranks = self.accelerator.num_processes
        per_batch = BATCH * ranks if data.get("split_batches") else BATCH
        stock = DataLoader(Numbered(samples), per_batch, **{"shuffle": True, **(loader or {})})
        self.total = epochs * -(-len(stock) // parts)
        inner = model()
        optimizer = torch.optim.AdamW(inner.parameters(), 1e-3)
        scheduler = schedule(optimizer, self.total)
        prepared = [] if way == "unprepared" else [stock]
        self.model, self.optimizer, self.scheduler, *rest = self.accelerator.prepare(
            inner, optimizer, scheduler, *prepared
        )
        self.loader = rest[0] if rest else stock
        if way != "stock":
            self.loader = adaptive(
                self.accelerator, self.loader, model=self.model, optimizer=self.optimizer, scheduler=self.scheduler,
                epochs=arguments.pop("said", epochs), **arguments,
            )  # fmt: skip
        self.epochs, self.clip, self.parts, self.overflow = epochs, clip, parts, overflow
        self.seen: dict[str, list[Any]] = {
            name: [] for name in ("indices", "epoch", "sizes", "lrs", "steps", "weights", "losses", "ends", "gathered")
        }

    def train(self, first: int = 0, *, save: tuple[int, str] | None = None, epochs: Any = None) -> Run:
        """Train to the end.

        Args:
            first: the epoch to go on with.
            save: the number of a batch after which the state is saved, and where.
            epochs: in place of `range`.
        """
        accelerator, seen = self.accelerator, self.seen
        for epoch in range(first, self.epochs) if epochs is None else epochs:
            for x, y, i in self.loader:
                with accelerator.accumulate(self.model):
                    seen["weights"].append(self.flat())
                    loss = nn.functional.mse_loss(self.model(x), y)
                    accelerator.backward(loss * torch.inf if self.overflow == len(seen["indices"]) else loss)
                    if self.clip is not None and accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(self.model.parameters(), self.clip)
                    self.optimizer.step()
                    self.scheduler.step()
                    self.optimizer.zero_grad()
                seen["indices"].append(i)
                seen["epoch"].append(epoch)
                seen["sizes"].append(len(i) * accelerator.num_processes)
                seen["lrs"].append(self.scheduler.get_last_lr()[0])
                seen["steps"].append(accelerator.sync_gradients)
                seen["losses"].append(loss.detach())
                seen["ends"].append(accelerator.gradient_state.end_of_dataloader)
                seen["gathered"].append(accelerator.gather_for_metrics(i))
                if save is not None and len(seen["indices"]) == save[0]:
                    accelerator.wait_for_everyone()
                    accelerator.save_state(save[1])
                    accelerator.wait_for_everyone()
        return self

    def flat(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.accelerator.unwrap_model(self.model).parameters()]).clone()

    @property
    def place(self) -> int:
        """Steps that the schedule has made."""
        return self.scheduler.scheduler.last_epoch

    def result(self) -> dict[str, Any]:
        seen, epochs = self.seen, sorted(set(self.seen["epoch"]))
        batches = [[i for i, e in zip(seen["indices"], seen["epoch"], strict=True) if e == epoch] for epoch in epochs]
        return {
            **seen, "epochs": [torch.cat(epoch) for epoch in batches], "last": self.flat(), "place": self.place,
            "total": self.total, "parts": self.parts, "history": list(getattr(self.loader, "history", [])),
        }  # fmt: skip


def resumed(out: str, after: int, **arguments: Any) -> dict[str, Any]:
    """A run that is saved after so many batches, and one that goes on from there."""
    torch.manual_seed(1)
    whole = Run("adaptive", **arguments).train(save=(after, out)).result()
    torch.manual_seed(99)
    run = Run("adaptive", **arguments)
    run.accelerator.load_state(out)
    rest = run.train(run.loader.epoch).result()
    return {"whole": whole, "rest": rest}


def trained(way: str, **arguments: Any) -> dict[str, Any]:
    torch.manual_seed(1)
    return Run(way, **arguments).train().result()


PROGRAMS: dict[str, Callable[[int, str], Any]] = {
    "stock": lambda ranks, out: trained("stock", samples=WHOLE),
    "off": lambda ranks, out: trained("adaptive", samples=WHOLE, overhead=0),
    "off unprepared": lambda ranks, out: trained("unprepared", samples=WHOLE, overhead=0),
    "stock split": lambda ranks, out: trained("stock", samples=WHOLE, parts=2, configuration=SPLIT),
    "off split": lambda ranks, out: trained("adaptive", samples=WHOLE, parts=2, configuration=SPLIT, overhead=0),
    "stock seedable": lambda ranks, out: trained("stock", samples=WHOLE, model=dropping, configuration=SEEDABLE),
    "off seedable": lambda ranks, out: trained(
        "adaptive", samples=WHOLE, model=dropping, configuration=SEEDABLE, overhead=0
    ),
    "off seedable unprepared": lambda ranks, out: trained(
        "unprepared", samples=WHOLE, model=dropping, configuration=SEEDABLE, overhead=0
    ),
    "grown": lambda ranks, out: trained("adaptive", clip=1.0, **growing(ranks)),
    "accumulated": lambda ranks, out: trained("adaptive", parts=2, clip=1.0, **growing(ranks, 2)),
    "split": lambda ranks, out: trained("adaptive", configuration=SPLIT, **growing(ranks)),
    "by the scheduler": lambda ranks, out: trained("unprepared", said=None, **growing(ranks)),
    "resumed": lambda ranks, out: resumed(f"{out}/state", 20, **growing(ranks)),
    "resumed within a step": lambda ranks, out: resumed(f"{out}/within", 15, parts=2, **growing(ranks, 2)),
}
SPLIT = {"data": {"split_batches": True}}
SEEDABLE = {"data": {"use_seedable_sampler": True}}


def main(programs: str, rank: int, world: int, out: str) -> None:
    """Run programs as one of several processes."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world),
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    dist.init_process_group(
        "gloo", init_method=f"file://{out}/store", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    for name in programs.split(","):
        torch.save(PROGRAMS[name](world, out), Path(out) / f"{name} {rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # (gloo's threads now and then abort a process that has done all it had to)



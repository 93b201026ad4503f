"""A LightningModule and a fit as Lightning's documentation writes them, and what they saw."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import distributed as dist
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from adaptbs.lightning import AdaptiveBatchSize
from tests.integration.training import Numbered

EPOCHS, BATCH = 4, 8
UNEVEN = 203  # samples: of no whole number of batches

for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
    logging.getLogger(name).setLevel(logging.ERROR)


def one_cycle(optimizer: Any, total: int) -> Any:
    return {"scheduler": OneCycleLR(optimizer, 0.05, total_steps=total), "interval": "step"}


def ramp(step: int) -> Callable[..., int]:
    """A target of 1, 2, 4 and 8 times the first step, by the share of the run done."""
    return lambda noise_scale, size, progress: step * 2 ** min(int(4 * progress), 3)


def growing(step: int = BATCH, **others: Any) -> AdaptiveBatchSize:
    """Grows in a way that can be repeated to the bit; `step`: samples of the first optimizer steps."""
    arguments = {"max_batch_size": 8 * BATCH, "step_time": (1e-3, 1e-5), "overhead": 0.5, "decide_every": 0.02}
    return AdaptiveBatchSize(**({"target": ramp(step)} | arguments | others))


def off() -> AdaptiveBatchSize:
    return AdaptiveBatchSize(overhead=0)


class Saw:
    """What a fit saw, batch by batch."""

    def __init__(self) -> None:
        self.indices: list[torch.Tensor] = []
        self.epochs: list[int] = []
        self.lrs: list[float] = []
        self.steps: list[int] = []  # trainer.global_step after each batch
        self.validated: list[tuple[int, int]] = []  # global step, and samples of this process so far
        self.is_last: list[bool] = []

    @property
    def sizes(self) -> list[int]:
        return [len(i) for i in self.indices]

    def epoch(self, epoch: int) -> list[int]:
        of_epoch = [i for i, e in zip(self.indices, self.epochs, strict=True) if e == epoch]
        return torch.cat(of_epoch).tolist() if of_epoch else []


def module_of(base: type) -> type:
    """The module, for `lightning` or `pytorch_lightning`."""

    class Module(base):
        def __init__(self, schedule: Callable[[Any, int], Any] | None = one_cycle, dropout: float = 0.1) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))
            self.saw, self.schedule = Saw(), schedule

        def forward(self, x):
            return self.net(x)

        def loss(self, batch):
            return nn.functional.mse_loss(self(batch[0]), batch[1])

        def training_step(self, batch, batch_idx):
            self.saw.indices.append(batch[2])
            self.saw.epochs.append(self.trainer.current_epoch)
            loss = self.loss(batch)
            self.log("loss", loss)
            return loss

        def on_train_batch_end(self, *_):
            self.saw.lrs.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            self.saw.steps.append(self.trainer.global_step)
            self.saw.is_last.append(self.trainer.is_last_batch)

        def validation_step(self, batch, batch_idx):
            self.log("valid", self.loss(batch))

        def on_validation_epoch_start(self):
            if not self.trainer.sanity_checking:
                self.saw.validated.append((self.trainer.global_step, sum(self.saw.sizes)))

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), 1e-3)
            if self.schedule is None:
                return optimizer
            self.total = int(self.trainer.estimated_stepping_batches)
            return {"optimizer": optimizer, "lr_scheduler": self.schedule(optimizer, self.total)}

        @property
        def weights(self) -> torch.Tensor:
            return torch.cat([p.detach().flatten() for p in self.parameters()])

    return Module


Module = module_of(lightning.LightningModule)


def fitted(
    callback: AdaptiveBatchSize | None = None,
    module: Callable[[], Any] = Module,
    *,
    seed: int = 1,
    samples: int = UNEVEN,
    loader: dict[str, Any] | None = None,
    train: Any = None,
    valid: bool = True,
    checkpoint: str | None = None,
    callbacks: Iterable[Any] = (),
    **trainer: Any,
) -> Any:
    """A module after its fit; `.trainer` is the Trainer. `valid` False: the module has its own validation loader."""
    torch.manual_seed(seed)
    built = module()
    every = [*([callback] if callback else []), *callbacks]
    settings = {
        "max_epochs": EPOCHS, "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "callbacks": every,
        "enable_checkpointing": any(hasattr(each, "best_model_path") for each in every),
    }  # fmt: skip
    fit = lightning.Trainer(**(settings | trainer))
    data = Numbered(samples)
    stock = DataLoader(data, BATCH, **({"shuffle": True} | (loader or {}))) if train is None else train
    fit.fit(built, stock, DataLoader(data, 64) if valid else None, ckpt_path=checkpoint)
    return built


def ddp(way: Callable[[], AdaptiveBatchSize | None], **others: Any) -> Callable[[str], dict[str, Any]]:
    def run(out: str) -> dict[str, Any]:
        callback = way()
        module = fitted(callback, devices=dist.get_world_size(), strategy="ddp", **others)
        history = callback.history if callback else []
        return {
            "weights": module.weights, "indices": module.saw.indices, "epochs": module.saw.epochs,
            "steps": module.saw.steps, "lrs": module.saw.lrs, "validated": module.saw.validated,
            "total": module.total, "place": module.trainer.lr_scheduler_configs[0].scheduler.last_epoch,
            "measurements": sum(record["event"] == "measurement" for record in history),
        }  # fmt: skip

    return run


def resumed(out: str) -> dict[str, Any]:
    """A fit that is saved at some steps, and one that goes on from the second of them."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    saving = ModelCheckpoint(f"{out}/saved", "{step:03d}", every_n_train_steps=15, save_top_k=-1)
    whole = ddp(lambda: growing(2 * BATCH), callbacks=[saving])(out)
    dist.barrier()
    saved = sorted(Path(f"{out}/saved").iterdir())[1]
    rest = ddp(lambda: growing(2 * BATCH), seed=9, checkpoint=str(saved))(out)
    return {"whole": whole, "rest": rest}


PROGRAMS: dict[str, Callable[[str], Any]] = {
    "stock": ddp(lambda: None),
    "off": ddp(off),
    "stock accumulated": ddp(lambda: None, accumulate_grad_batches=2),
    "off accumulated": ddp(off, accumulate_grad_batches=2),
    "grown": ddp(lambda: growing(2 * BATCH), gradient_clip_val=1.0),
    "accumulated": ddp(lambda: growing(4 * BATCH), accumulate_grad_batches=2),
    "resumed": resumed,
}


def main(rank: int, world: int, out: str) -> None:
    """Run all programs as one of several processes."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    dist.init_process_group(
        "gloo", init_method=f"file://{out}/store", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    for name, program in PROGRAMS.items():
        torch.save(program(out), Path(out) / f"{name} {rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # (gloo's threads now and then abort a process that has done all it had to)

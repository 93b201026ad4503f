"""adaptbs.lightning with growth off: a Trainer does to the bit what it does without the callback."""

from __future__ import annotations

import csv

import pytest
import torch

lightning = pytest.importorskip("lightning", reason="needs lightning: `make trainers` runs it in .venv-trainers")

from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint  # noqa: E402
from lightning.pytorch.loggers import CSVLogger  # noqa: E402
from torch import nn  # noqa: E402
from torch.optim.lr_scheduler import LinearLR, ReduceLROnPlateau, StepLR  # noqa: E402
from torch.utils.data import DataLoader, SubsetRandomSampler, WeightedRandomSampler  # noqa: E402

from tests.integration.trainers.lightning_programs import BATCH, Module, fitted, off, one_cycle  # noqa: E402
from tests.integration.training import Numbered  # noqa: E402


def assert_same(ours, stock):
    callback = ours.trainer.callbacks[0]  # it has delivered the batches, not left them to the stock loader
    assert callback.training_run.controller.progress_tracker.samples == sum(ours.saw.sizes)
    assert torch.equal(ours.weights, stock.weights)
    assert all(map(torch.equal, ours.saw.indices, stock.saw.indices))
    for name in ("epochs", "lrs", "steps", "validated", "is_last"):
        assert getattr(ours.saw, name) == getattr(stock.saw, name), name
    assert ours.trainer.global_step == stock.trainer.global_step
    assert ours.trainer.current_epoch == stock.trainer.current_epoch


TRAINERS = {
    "plain": {},
    "a share of the epoch": {"val_check_interval": 0.25},
    "a number of batches": {"val_check_interval": 7},
    "a number of batches of the run": {"val_check_interval": 30, "check_val_every_n_epoch": None},
    "a number of batches of the run, accumulated": {
        "val_check_interval": 5,
        "check_val_every_n_epoch": None,
        "accumulate_grad_batches": 3,
    },
    "every second epoch": {"check_val_every_n_epoch": 2},
    "accumulated": {"accumulate_grad_batches": 3, "val_check_interval": 10},
    "clipped": {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "norm"},
    "bfloat16": {"precision": "bf16-mixed"},
    "max_steps": {"max_steps": 60, "max_epochs": -1},
    "limited": {"limit_train_batches": 10},
    "limited by a share": {"limit_train_batches": 0.3},
    "a batch": {"fast_dev_run": True},
    "overfit": {"overfit_batches": 4},
}


@pytest.mark.parametrize("trainer", TRAINERS.values(), ids=TRAINERS)
def test_with_growth_off_a_trainer_does_the_same(trainer):
    assert_same(fitted(off(), **trainer), fitted(**trainer))


class Random(Numbered):
    """Draws as a random transform does, so that it shows whether batches are fetched when stock's are."""

    def __getitem__(self, i):
        x, y, _ = super().__getitem__(i)
        return x + 0.1 * torch.randn(8), y, i


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


LOADERS = {
    "drop_last": lambda: DataLoader(Numbered(203), BATCH, shuffle=True, drop_last=True),
    "in order": lambda: DataLoader(Numbered(203), BATCH),
    "workers": lambda: DataLoader(Random(203), BATCH, shuffle=True, num_workers=2),
    "persistent workers": lambda: DataLoader(Random(203), BATCH, shuffle=True, num_workers=1, persistent_workers=True),
    "random transforms": lambda: DataLoader(Random(203), BATCH, shuffle=True),
    "a generator": lambda: DataLoader(Numbered(203), BATCH, shuffle=True, generator=seeded()),
    # RandomSampler makes a draw more when it is asked for what follows its last index; Lightning does not ask.
    "a generator and whole batches": lambda: DataLoader(Numbered(200), BATCH, shuffle=True, generator=seeded()),
    "a generator and drop_last": lambda: DataLoader(
        Numbered(203), BATCH, shuffle=True, generator=seeded(), drop_last=True
    ),
    "a generator and workers": lambda: DataLoader(
        Numbered(200), BATCH, shuffle=True, generator=seeded(), num_workers=1
    ),
    "weighted": lambda: DataLoader(
        Numbered(203), BATCH, sampler=WeightedRandomSampler(torch.arange(1.0, 204.0), 150, generator=seeded())
    ),
    "a subset": lambda: DataLoader(Numbered(203), BATCH, sampler=SubsetRandomSampler(range(50, 203))),
}


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_with_growth_off_a_loader_delivers_the_same(loader):
    assert_same(fitted(off(), train=loader()), fitted(train=loader()))


def test_a_loader_that_was_used_before_and_is_used_again():
    used, unused = (DataLoader(Numbered(203), BATCH, shuffle=True) for _ in range(2))
    next(iter(used))
    fitted(off(), train=used)
    assert_same(fitted(off(), train=used), fitted(train=unused))


class Manual(Module):
    """Steps by itself, each `every` batches; the schedule at each step, or in the way that `when` says."""

    def __init__(self, every: int = 1, when: str = "step") -> None:
        super().__init__(dropout=0.0)
        self.automatic_optimization, self.every, self.when = False, every, when

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx) / self.every
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        self.manual_backward(loss)
        if (batch_idx + 1) % self.every == 0:
            optimizer.step()
            optimizer.zero_grad()
            if self.when == "step":
                scheduler.step()
        if self.when == "last batch" and self.trainer.is_last_batch:
            scheduler.step()

    def on_train_epoch_end(self):
        if self.when == "epoch's end":
            self.lr_schedulers().step()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.05)
        self.total = int(self.trainer.estimated_stepping_batches) // self.every
        return [optimizer], [
            LinearLR(optimizer, 1.0, 0.01, self.total) if self.when == "step" else StepLR(optimizer, 1, 0.5)
        ]


class WarmUp(Module):
    """Sets the rate by hand, as Lightning's documentation does."""

    def __init__(self) -> None:
        super().__init__(schedule=None)

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer.step(closure=optimizer_closure)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (self.trainer.global_step + 1) / 60)


class Several(Module):
    """Two schedulers of one optimizer: one by steps, one by epochs."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.05)
        self.total = int(self.trainer.estimated_stepping_batches)
        by_steps = {"scheduler": LinearLR(optimizer, 0.1, 1.0, self.total), "interval": "step"}
        return [optimizer], [by_steps, {"scheduler": StepLR(optimizer, 1, 0.5), "interval": "epoch"}]


class Normed(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))


def plateau(optimizer, total):
    return {"scheduler": ReduceLROnPlateau(optimizer, patience=0, factor=0.5), "monitor": "valid"}


MODULES = {
    "manual": Manual,
    "manual, every third": lambda: Manual(every=3),
    "manual, at the last batch": lambda: Manual(when="last batch"),
    "manual, at the epoch's end": lambda: Manual(when="epoch's end"),
    "no scheduler": lambda: Module(schedule=None),
    "by epochs": lambda: Module(lambda optimizer, total: StepLR(optimizer, 1, 0.5)),
    "every tenth batch": lambda: Module(lambda optimizer, total: {**one_cycle(optimizer, total), "frequency": 10}),
    "by a metric": lambda: Module(plateau),
    "two schedulers": Several,
    "warm-up by hand": WarmUp,
    "batch norm": Normed,
}


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_with_growth_off_a_module_trains_the_same(module):
    assert_same(fitted(off(), module), fitted(None, module))


def test_with_growth_off_the_same_is_logged_and_saved(tmp_path):
    def recorded(callback, name):
        saving = ModelCheckpoint(tmp_path / name, every_n_train_steps=15, save_top_k=-1)
        logger = CSVLogger(tmp_path, name, version="x")
        fitted(
            callback, logger=logger, log_every_n_steps=7, val_check_interval=0.5,
            callbacks=[LearningRateMonitor("step"), saving],
        )  # fmt: skip
        rows = list(csv.reader((tmp_path / name / "x" / "metrics.csv").open()))
        return rows, sorted(path.name for path in (tmp_path / name).glob("*.ckpt"))

    ours, stock = recorded(off(), "ours"), recorded(None, "stock")
    assert ours == stock
    assert len(stock[1]) == 104 // 15

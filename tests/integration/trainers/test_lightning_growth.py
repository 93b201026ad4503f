"""adaptbs.lightning while the batch grows: everything by steps comes where it comes in the stock run."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections import Counter
from itertools import pairwise

import pytest
import torch

lightning = pytest.importorskip("lightning", reason="needs lightning: `make trainers` runs it in .venv-trainers")

from lightning.pytorch import Callback, LightningDataModule  # noqa: E402
from lightning.pytorch.callbacks import (  # noqa: E402
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger  # noqa: E402
from lightning.pytorch.tuner import Tuner  # noqa: E402
from torch import nn  # noqa: E402
from torch.optim.lr_scheduler import LinearLR, OneCycleLR, StepLR  # noqa: E402
from torch.utils.data import DataLoader, IterableDataset  # noqa: E402

from adaptbs import AdaptiveDataLoader  # noqa: E402
from adaptbs.timing.clock import NoClock  # noqa: E402
from tests.integration.trainers.lightning_programs import (  # noqa: E402
    BATCH,
    EPOCHS,
    UNEVEN,
    Module,
    fitted,
    growing,
    module_of,
    one_cycle,
)
from tests.integration.trainers.test_lightning_stock import Manual, Several, WarmUp  # noqa: E402
from tests.integration.training import Numbered  # noqa: E402

EPOCH_BATCHES = math.ceil(UNEVEN / BATCH)  # 26


def grown(module) -> bool:
    return max(module.saw.sizes) >= 4 * BATCH and len(module.saw.sizes) < EPOCHS * EPOCH_BATCHES


def counts(module, epochs: int = EPOCHS) -> set[int]:
    """How often each sample came in an epoch."""
    return {n for e in range(epochs) for n in Counter(module.saw.epoch(e)).values()} | {
        len(module.saw.epoch(e)) // UNEVEN for e in range(epochs)
    }


TRAINERS = {
    "at each epoch's end": {},
    "a share of the epoch": {"val_check_interval": 0.5},
    "a number of batches": {"val_check_interval": 9},
    "a number of batches of the run": {"val_check_interval": 30, "check_val_every_n_epoch": None},
    "every second epoch": {"check_val_every_n_epoch": 2},
    "accumulated": {"accumulate_grad_batches": 2, "val_check_interval": 0.5},
    "clipped": {"gradient_clip_val": 0.5},
    "bfloat16": {"precision": "bf16-mixed"},
}


@pytest.mark.parametrize("trainer", TRAINERS.values(), ids=TRAINERS)
def test_as_many_steps_validations_and_checkpoints_as_stock(trainer, tmp_path):
    parts = trainer.get("accumulate_grad_batches", 1)

    def with_checkpoints(callback, name):
        saving = ModelCheckpoint(tmp_path / name, "{step}", every_n_train_steps=13, save_top_k=-1)
        module = fitted(callback, callbacks=[saving], **trainer)
        return module, sorted(path.name for path in (tmp_path / name).iterdir())

    (ours, saved), (stock, saved_by_stock) = (
        with_checkpoints(growing(BATCH * parts), "ours"), with_checkpoints(None, "stock")
    )  # fmt: skip
    assert grown(ours)
    assert counts(ours) == {1}
    assert ours.trainer.global_step == stock.trainer.global_step == stock.total == ours.total
    assert ours.trainer.current_epoch == EPOCHS
    assert saved == saved_by_stock
    assert ours.lr_schedulers().last_epoch == stock.lr_schedulers().last_epoch == stock.total
    assert ours.saw.lrs[-1] == stock.saw.lrs[-1]
    assert len(ours.saw.validated) == len(stock.saw.validated)
    for (_, samples), (_, stocks) in zip(ours.saw.validated, stock.saw.validated, strict=True):
        assert stocks <= samples < stocks + max(ours.saw.sizes)


def test_it_is_the_run_of_a_plain_loop(tmp_path):
    """The oracle: the same loader in a loop of our own, stepped where Lightning steps."""
    ours = fitted(callback := growing(), lambda: Module(dropout=0.0), limit_val_batches=0, gradient_clip_val=0.5)

    torch.manual_seed(1)
    module = Module(dropout=0.0)
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
    stock = DataLoader(Numbered(UNEVEN), BATCH, shuffle=True)
    scheduler = OneCycleLR(optimizer, 0.05, total_steps=EPOCHS * len(stock))
    loader = AdaptiveDataLoader.from_loader(
        stock, model=module, optimizer=optimizer, scheduler=scheduler, epochs=EPOCHS, **callback._arguments
    )
    sizes = []
    for _ in range(EPOCHS):
        for x, y, _ in loader:
            sizes.append(len(x))
            optimizer.zero_grad()
            nn.functional.mse_loss(module(x), y).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
    assert ours.saw.sizes == sizes
    assert torch.equal(ours.weights, module.weights)
    assert callback.noise_scale == loader.noise_scale
    assert callback.noise_scale is not None
    assert list(callback.history) == list(loader.history)
    assert sum(record["event"] == "measurement" for record in callback.history) > 10


def test_a_validation_that_stock_makes_after_a_step_waits_for_the_step():
    ours, stock = (
        fitted(callback, accumulate_grad_batches=2, val_check_interval=4) for callback in (growing(2 * BATCH), None)
    )
    made = [0, *ours.saw.steps]
    for step, samples in ours.saw.validated:
        number = [sum(ours.saw.sizes[:i]) for i in range(len(made))].index(samples)
        assert made[number] == step > made[number - 1]  # the batch before it made an optimizer step
    assert len(stock.saw.validated) >= len(ours.saw.validated) >= EPOCHS


@pytest.mark.parametrize("steps", [60, 52, 70])  # within an epoch, at its end, and where the batch is largest
@pytest.mark.parametrize("epochs", [-1, EPOCHS])
@pytest.mark.parametrize("parts", [1, 2])
def test_max_steps_means_so_many_steps_of_the_first_batch(steps, epochs, parts):
    steps //= parts
    limits = {"max_steps": steps, "max_epochs": epochs, "accumulate_grad_batches": parts}
    ours, stock = fitted(growing(BATCH * parts), **limits), fitted(**limits)
    assert ours.trainer.global_step == stock.trainer.global_step == steps
    assert sum(ours.saw.sizes) == sum(stock.saw.sizes)
    assert len(ours.saw.sizes) < len(stock.saw.sizes)
    assert ours.trainer.current_epoch == stock.trainer.current_epoch
    assert len(ours.saw.validated) == len(stock.saw.validated)
    assert ours.saw.lrs[-1] == stock.saw.lrs[-1]
    assert ours.trainer.callbacks[0].progress == 1


def test_a_limited_epoch_has_the_samples_of_stocks():
    ours, stock = fitted(growing(), limit_train_batches=20), fitted(limit_train_batches=20)
    assert grown(ours)
    for epoch in range(EPOCHS):
        assert sorted(ours.saw.epoch(epoch)) == sorted(stock.saw.epoch(epoch))
    assert ours.trainer.global_step == stock.trainer.global_step


class StepByStep(Module):
    """Two steps of one optimizer for each batch."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for _ in range(2):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


SCHEDULES = {
    "manual": Manual,
    "manual, at the last batch": lambda: Manual(when="last batch"),
    "manual, at the epoch's end": lambda: Manual(when="epoch's end"),
    "manual, two steps a batch": StepByStep,
    "by epochs": lambda: Module(lambda optimizer, total: StepLR(optimizer, 1, 0.5)),
    "every tenth batch": lambda: Module(lambda optimizer, total: {**one_cycle(optimizer, total), "frequency": 10}),
    "two schedulers": Several,
    "linear": lambda: Module(lambda o, total: {"scheduler": LinearLR(o, 1, 0.01, total), "interval": "step"}),
    "warm-up by hand": WarmUp,
}


@pytest.mark.parametrize("module", SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_ends_where_stocks_does(module):
    ours, stock = fitted(growing(), module), fitted(None, module)
    assert grown(ours)
    assert ours.saw.lrs[-1] == pytest.approx(stock.saw.lrs[-1])
    assert ours.trainer.global_step == stock.trainer.global_step
    rates = dict(zip(stock.saw.steps, stock.saw.lrs, strict=True))  # by the step that they come after
    assert [rates[step] for step in ours.saw.steps] == pytest.approx(ours.saw.lrs)


def test_a_module_that_accumulates_by_itself_says_so():
    ours = fitted(growing(4 * BATCH, accumulation_steps=4), lambda: Manual(every=4))
    assert grown(ours)
    assert ours.trainer.callbacks[0].training_run.controller.batches_per_step == 4
    assert ours.trainer.global_step == EPOCHS * (EPOCH_BATCHES // 4)


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
@pytest.mark.parametrize("trainer", [{}, {"max_steps": 60, "max_epochs": -1}], ids=["epochs", "max_steps"])
def test_the_progress_bar_ends_at_its_total(bar, trainer):
    if bar is RichProgressBar:
        pytest.importorskip("rich", reason="needs rich")
    shown = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            line = trainer.progress_bar_callback
            if bar is TQDMProgressBar:
                total = line.train_progress_bar.total
            else:
                (total,) = (task.total for task in line.progress.tasks if task.id == line.train_progress_bar_id)
            shown.append((batch_idx + 1, total))

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ours = fitted(growing(), callbacks=[bar(), Watch()], enable_progress_bar=True, **trainer)
    ends = [a for a, b in pairwise([*shown, (1, 0)]) if b[0] == 1]
    assert len(ends) == ours.trainer.current_epoch
    assert all(number == total for number, total in ends)
    assert all(number <= total for number, total in shown)


def test_logs_come_as_often_as_stocks(tmp_path):
    def steps(callback, name):
        logger = CSVLogger(tmp_path, name, version="x")
        module = fitted(callback, logger=logger, log_every_n_steps=13, callbacks=[LearningRateMonitor("step")])
        rows = list(csv.DictReader((tmp_path / name / "x" / "metrics.csv").open()))
        return module, [int(row["step"]) for row in rows]

    (ours, found), (_, expected) = steps(growing(), "ours"), steps(None, "stock")
    assert grown(ours)
    assert len(found) == len(expected)
    assert all(a <= b < a + 8 for a, b in zip(expected, found, strict=True))
    assert ours.trainer.log_every_n_steps == 13


def test_a_data_module_and_a_loader_of_the_modules_own():
    class Data(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Numbered(UNEVEN), BATCH, shuffle=True)

    class Own(Module):
        train_dataloader = Data.train_dataloader

    for data, module in ((Data(), Module()), (None, Own())):
        callback = growing()
        trainer = lightning.Trainer(
            max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=callback,
        )  # fmt: skip
        trainer.fit(module, datamodule=data) if data else trainer.fit(module)
        assert grown(module)
        assert counts(module) == {1}


class Recording(NoClock):
    """Notes what a clock is told."""

    def __init__(self, events):
        self.events = events

    def start(self):
        self.events.append("start")

    def step(self, batch_size):
        self.events.append("step")


def test_a_validation_is_no_part_of_a_steps_time():
    events, callback = [], growing()

    class Watch(Callback):
        def on_train_start(self, trainer, module):
            callback.training_run.use_clock(Recording(events))

        def on_validation_start(self, trainer, module):
            if not trainer.sanity_checking:
                events.append("validation")

    ours = fitted(callback, callbacks=[Watch()], val_check_interval=4)
    assert events.count("validation") == len(ours.saw.validated) > EPOCHS
    assert events.count("step") == len(ours.saw.sizes)
    for at, event in enumerate(events):
        if event == "validation":
            assert events[at - 1] == "step"  # the clock had been told of the batch before
            assert events[at + 1] == "start"


def test_the_state_can_be_saved_after_the_fit(tmp_path):
    ours = fitted(growing(), lambda: Module(schedule=None), max_epochs=2)
    ours.trainer.save_checkpoint(tmp_path / "after.ckpt")
    rest = fitted(growing(), lambda: Module(schedule=None), checkpoint=str(tmp_path / "after.ckpt"))
    assert rest.trainer.global_step == EPOCHS * EPOCH_BATCHES
    assert [len(rest.saw.epoch(e)) for e in range(EPOCHS)] == [0, 0, UNEVEN, UNEVEN]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Numbered(UNEVEN))

    def __len__(self):
        return UNEVEN


def test_a_stream_with_a_length():
    ours = fitted(growing(), train=DataLoader(Stream(), BATCH))
    assert grown(ours)
    assert counts(ours) == {1}
    assert ours.trainer.global_step == EPOCHS * EPOCH_BATCHES


def test_workers_deliver_each_sample_once():
    ours = fitted(growing(), loader={"num_workers": 2, "persistent_workers": True})
    assert grown(ours)
    assert counts(ours) == {1}
    assert ours.trainer.global_step == EPOCHS * EPOCH_BATCHES


TRANSFERRED = []  # no attribute of the module: a pass that measures puts these back
CALLS: Counter[str] = Counter()


class Normed(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))

    def on_after_batch_transfer(self, batch, dataloader_idx):
        TRANSFERRED.append(len(batch))
        return batch


@pytest.mark.parametrize("by", ["batch_loss", "loss_func"])
def test_a_model_with_batch_norm_is_measured_by_its_loss(by):
    def counting(module, batch):
        CALLS["batch_loss"] += 1
        return module.loss(batch)

    losses = {"batch_loss": counting, "loss_func": nn.functional.mse_loss}

    class Pairs(Numbered):
        def __getitem__(self, i):
            x, y, _ = super().__getitem__(i)
            return x, y

    class Two(Normed):
        def training_step(self, batch, batch_idx):
            return super().training_step((*batch, torch.arange(len(batch[0]))), batch_idx)

    train = DataLoader(Pairs(UNEVEN), BATCH, shuffle=True)
    TRANSFERRED.clear()
    CALLS.clear()
    ours = fitted(callback := growing(**{by: losses[by]}), Two, train=train)
    assert grown(ours)
    assert callback.noise_scale is not None
    if by == "batch_loss":
        assert not CALLS["batch_loss"]  # measured passes leave it as it was, and no other calls it
        assert len(TRANSFERRED) > len(ours.saw.sizes) + EPOCHS * 4 + 2  # measured batches went through the hook too


def test_a_second_fit_of_the_same_trainer_goes_on_with_the_epochs():
    ours = fitted(callback := growing(), lambda: Module(schedule=None), max_epochs=2)
    before = len(ours.saw.sizes)
    ours.trainer.fit_loop.max_epochs = EPOCHS
    ours.trainer.fit(ours, DataLoader(Numbered(UNEVEN), BATCH, shuffle=True))
    assert counts(ours) == {1}
    assert ours.trainer.global_step == EPOCHS * EPOCH_BATCHES
    assert len(ours.saw.sizes) > before
    assert callback.progress == 1


def test_a_fit_that_stops_early_or_skips_the_rest_of_an_epoch():
    ours, stock = (
        fitted(callback, callbacks=[EarlyStopping("valid", patience=0, min_delta=100.0)])
        for callback in (growing(), None)
    )
    assert ours.trainer.current_epoch == stock.trainer.current_epoch == 2
    assert ours.trainer.global_step == stock.trainer.global_step

    class Skips(Module):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 3 else None

    ours, stock = (fitted(callback, Skips) for callback in (growing(), None))
    assert len(ours.saw.sizes) == len(stock.saw.sizes) == EPOCHS * 3


def test_a_fit_that_fails_leaves_nothing_behind(tmp_path):
    class Fails(Module):
        def training_step(self, batch, batch_idx):
            if batch_idx == 5:
                raise KeyError("as a user's own code may")
            return super().training_step(batch, batch_idx)

    saving = ModelCheckpoint(tmp_path, every_n_train_steps=3)
    callback, module = growing(), Fails()
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[callback, saving], log_every_n_steps=7,
    )  # fmt: skip
    with pytest.raises(KeyError):
        trainer.fit(module, DataLoader(Numbered(UNEVEN), BATCH))
    assert "on_train_batch_end" not in vars(saving)
    assert "process_dataloader" not in vars(trainer.strategy)
    assert trainer.log_every_n_steps == 7
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks
    assert grown(fitted(callback))  # the callback serves another fit


def test_the_callback_may_stay_while_a_learning_rate_is_looked_for():
    module = Module(schedule=None)
    module.lr, module.configure_optimizers = 1e-3, lambda: torch.optim.SGD(module.parameters(), module.lr)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[growing()],
    )  # fmt: skip
    train = DataLoader(Numbered(UNEVEN), BATCH, shuffle=True)
    Tuner(trainer).lr_find(module, train, num_training=20, update_attr=False)
    module.saw.__init__()
    trainer.fit(module, train)
    assert grown(module)
    assert counts(module) == {1}


def test_fabric_takes_our_loader_as_a_plain_loop_does():
    results = []
    for fabric in (lightning.Fabric(accelerator="cpu", devices=1), None):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        loader = AdaptiveDataLoader(
            Numbered(UNEVEN), BATCH, shuffle=True, model=model, optimizer=optimizer, epochs=EPOCHS,
            **growing()._arguments,
        )  # fmt: skip
        used, stepped, batches = model, optimizer, loader
        if fabric is not None:
            used, stepped = fabric.setup(model, optimizer)
            batches = fabric.setup_dataloaders(loader)
        for _ in range(EPOCHS):
            for x, y, _ in batches:
                stepped.zero_grad()
                loss = nn.functional.mse_loss(used(x), y)
                fabric.backward(loss) if fabric is not None else loss.backward()
                stepped.step()
        results.append((loader.batch_size, loader.noise_scale, [p.detach().clone() for p in model.parameters()]))
    (size, noise_scale, weights), (plain_size, plain_noise_scale, plain_weights) = results
    assert size == plain_size == 8 * BATCH
    assert noise_scale == plain_noise_scale
    assert all(map(torch.equal, weights, plain_weights))


def test_pytorch_lightning_is_the_same_library_under_another_name(tmp_path):
    other = pytest.importorskip("pytorch_lightning", reason="needs pytorch_lightning beside lightning")
    kind = module_of(other.LightningModule)
    seen = {}
    for name, callbacks in (("stock", []), ("ours", [growing()])):
        torch.manual_seed(1)
        module = kind()
        saving = other.callbacks.ModelCheckpoint(tmp_path / name, every_n_train_steps=13, save_top_k=-1)
        trainer = other.Trainer(
            max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[*callbacks, saving], val_check_interval=0.5,
        )  # fmt: skip
        trainer.fit(module, DataLoader(Numbered(UNEVEN), BATCH, shuffle=True), DataLoader(Numbered(64), 64))
        saved = sorted(path.name for path in (tmp_path / name).iterdir())
        seen[name] = module, saved, trainer.global_step, len(module.saw.validated)
    assert grown(seen["ours"][0])
    assert counts(seen["ours"][0]) == {1}
    assert seen["ours"][1:] == seen["stock"][1:]

"""adaptbs.lightning where a module asks the Trainer for its loader and steps in mid-fit, and where it fits anew."""

from __future__ import annotations

import inspect

import pytest
import torch

lightning = pytest.importorskip("lightning", reason="needs lightning: `make trainers` runs it in .venv-trainers")

from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint  # noqa: E402
from torch.optim.lr_scheduler import LinearLR  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from adaptbs.lightning import AdaptiveBatchSize  # noqa: E402
from tests.integration.trainers.lightning_programs import BATCH, EPOCHS, UNEVEN, Module, fitted, growing, off  # noqa: E402
from tests.integration.trainers.test_lightning_stock import Manual  # noqa: E402
from tests.integration.training import Numbered  # noqa: E402

EPOCH_BATCHES = -(-UNEVEN // BATCH)


class Looks(Module):
    """Looks at batches of `trainer.train_dataloader`, in a step and at an epoch's end."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if batch_idx == 3:
            assert len(next(iter(self.trainer.train_dataloader))[2]) == BATCH
        return loss

    def on_train_epoch_end(self):
        with torch.no_grad():
            assert sum(len(batch[2]) for batch in self.trainer.train_dataloader) == UNEVEN


def test_a_look_at_the_trainers_loader_is_no_part_of_the_fit(caplog):
    stock, ours, grown = fitted(None, Looks), fitted(off(), Looks), fitted(growing(), Looks)
    assert torch.equal(ours.weights, stock.weights)
    assert all(map(torch.equal, ours.saw.indices, stock.saw.indices))
    for epoch in range(EPOCHS):
        assert sorted(grown.saw.epoch(epoch)) == list(range(UNEVEN))
    assert grown.trainer.global_step == stock.trainer.global_step == EPOCHS * EPOCH_BATCHES
    assert grown.trainer.lr_scheduler_configs[0].scheduler.last_epoch == grown.total
    assert not [record for record in caplog.records if record.name.startswith("adaptbs")]


def test_the_steps_of_the_run_are_stocks_throughout_the_fit():
    """A rate that a module sets by its share of them comes down to nothing, and not below."""

    class ByHand(Module):
        def __init__(self):
            super().__init__(schedule=None)
            self.set_by_hand, self.estimates = [], []

        def on_train_batch_start(self, batch, batch_idx):
            self.estimates.append(self.trainer.estimated_stepping_batches)
            share = self.trainer.global_step / self.trainer.estimated_stepping_batches
            for group in self.optimizers().param_groups:
                group["lr"] = 1e-2 * (1 - share)
            self.set_by_hand.append(1 - share)

    for trainer in ({}, {"max_steps": 70, "max_epochs": -1}, {"accumulate_grad_batches": 3}):
        parts = trainer.get("accumulate_grad_batches", 1)
        stock, ours = (fitted(callback, ByHand, **trainer) for callback in (None, growing(parts * BATCH)))
        assert set(ours.estimates) == set(stock.estimates)
        assert len(ours.estimates) < 0.8 * len(stock.estimates)
        assert 0 < min(ours.set_by_hand) < 0.2
        assert type(ours.trainer) is type(stock.trainer) is lightning.Trainer
        assert ours.trainer.global_step == stock.trainer.global_step


@pytest.mark.parametrize("parts", [1, 3])
def test_an_epoch_that_max_steps_ends_has_all_of_its_batches_throughout(parts):
    class Counts(Module):
        def training_step(self, batch, batch_idx):
            self.counts.append(self.trainer.num_training_batches)
            return super().training_step(batch, batch_idx)

        def on_fit_start(self):
            self.counts = []

    limits = {"max_steps": -(-EPOCH_BATCHES // parts) + 4, "accumulate_grad_batches": parts}
    stock, off_, grown = (fitted(way, Counts, **limits) for way in (None, off(), growing(parts * BATCH)))
    assert off_.counts == stock.counts == [EPOCH_BATCHES] * len(stock.counts)
    size, left = grown.trainer.callbacks[0].batch_size, UNEVEN - len(grown.saw.epoch(1))
    assert size > BATCH
    assert grown.counts[-1] == grown.saw.epochs.count(1) + -(-left // size)


def test_another_fit_of_the_same_trainer_draws_what_stocks_draws():
    weights = []
    for callback in (None, off()):
        first = fitted(callback, max_epochs=2)
        first.trainer.fit_loop.max_epochs = EPOCHS
        first.trainer.fit(second := Module(), DataLoader(Numbered(UNEVEN), BATCH, shuffle=True))
        weights.append((second.weights, torch.cat(second.saw.indices)))
    assert torch.equal(weights[0][1], weights[1][1])
    assert torch.equal(weights[0][0], weights[1][0])


def test_a_fit_that_has_nothing_to_train_leaves_the_trainer_and_what_the_one_before_has_left(tmp_path):
    """All epochs are over, so Lightning calls no hook of the training."""
    saved, own = [], []
    for callback in (None, growing()):
        fit = fitted(callback, max_epochs=2, limit_val_batches=0).trainer
        before = dict(fit.callbacks[0].state_dict()) if callback else {}
        fit.fit(fit.lightning_module, DataLoader(Numbered(UNEVEN), BATCH))
        own.append(set(vars(fit.strategy)))
        fit.save_checkpoint(tmp_path / "last.ckpt")
        saved.append(torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"])
    assert own[0] == own[1]
    assert callback.history and callback.batch_size > BATCH
    assert set(saved[1][callback.state_key]) == set(before)


def test_all_defaults_may_be_given_as_lightnings_command_line_gives_them():
    shown = inspect.signature(AdaptiveBatchSize).parameters.values()
    repeats = {"step_time": (1e-3, 1e-5)}
    callback = AdaptiveBatchSize(**{parameter.name: parameter.default for parameter in shown} | repeats)
    ours, same = fitted(callback), fitted(AdaptiveBatchSize(**repeats))
    assert ours.saw.sizes == same.saw.sizes
    assert torch.equal(ours.weights, same.weights)


class Counted(EMAWeightAveraging):
    """Keeps the number of times that the average has taken in the model."""

    updates = 0

    def on_train_end(self, trainer, pl_module):
        self.updates = int(self._average_model.n_averaged)
        super().on_train_end(trainer, pl_module)


@pytest.mark.parametrize("parts", [1, 2])
def test_an_average_takes_in_the_model_as_often_as_stocks(parts):
    """At every tenth step, which larger batches skip."""
    fits = []
    for callback in (None, off(), growing(BATCH * parts)):
        averages = Counted(decay=0.9, update_every_n_steps=10, update_starting_at_step=10)
        fits.append((fitted(callback, callbacks=[averages], accumulate_grad_batches=parts), averages))
    (stock, its), (same, ours), (grown, theirs) = fits
    assert torch.equal(same.weights, stock.weights)
    assert ours.updates == theirs.updates == its.updates == (EPOCHS * EPOCH_BATCHES // parts - 1) // 10
    assert len(grown.saw.sizes) < 0.7 * len(stock.saw.sizes)
    assert "should_update" not in vars(theirs)


class Accumulates(Manual):
    """Steps at every fourth batch, and where it `ends` with what an epoch's end leaves; its schedule too."""

    def __init__(self, ends: bool) -> None:
        super().__init__()
        self.ends = ends

    def training_step(self, batch, batch_idx):
        self.manual_backward(Module.training_step(self, batch, batch_idx) / 4)
        if (batch_idx + 1) % 4 == 0 or (self.ends and self.trainer.is_last_batch):
            self.optimizers().step()
            self.optimizers().zero_grad()
            self.lr_schedulers().step()

    def configure_optimizers(self):
        self.total = EPOCHS * (EPOCH_BATCHES // 4 + self.ends)
        optimizer = torch.optim.SGD(self.parameters(), 0.05)
        return [optimizer], [LinearLR(optimizer, 1.0, 0.01, self.total)]


@pytest.mark.parametrize("ends", [True, False])
def test_manual_steps_of_what_an_epochs_end_leaves_are_counted(ends, tmp_path):
    def fit(callback, **others):
        return fitted(callback, lambda: Accumulates(ends), **others)

    stock, same = fit(None), fit(AdaptiveBatchSize(overhead=0, accumulation_steps=4))
    assert torch.equal(same.weights, stock.weights)
    saving = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1)
    grown = fit(growing(4 * BATCH, accumulation_steps=4), callbacks=[saving])
    rest = fit(growing(4 * BATCH, accumulation_steps=4), seed=5, checkpoint=str(tmp_path / "epoch=1.ckpt"))
    assert len(grown.saw.sizes) < 0.6 * len(stock.saw.sizes)
    for ours in (same, grown, rest):
        assert ours.trainer.global_step == stock.trainer.global_step == stock.total
        assert ours.lr_schedulers().last_epoch == stock.total
    assert torch.equal(rest.weights, grown.weights)


def test_accumulation_that_a_callback_changes_on_the_way_is_refused():
    class Changes(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.accumulate_grad_batches = 1 + (trainer.current_epoch > 0)

    with pytest.raises(ValueError, match="accumulate_grad_batches=2: the fit began with 1"):
        fitted(growing(), callbacks=[Changes()])

"""A loss that sums over its batch: its gradient grows with it by itself, and a learning rate would count it twice."""

from __future__ import annotations

from functools import partial

import fastai.callback.progress  # noqa: F401, which gives a Learner `no_bar`
import pytest
import torch
from fastai.basics import Learner
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader as FastaiLoader
from fastai.optimizer import SGD as FastaiSGD
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adam
from torch.utils.data import TensorDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.fastai import AdaptiveBatchSize
from tests.integration.training import Numbered

BATCH = 16
HELD = "loss sums over the batch"
GROWING = {"step_time": (1.0, 0.0), "overhead": 0.5, "max_batch_size": 256}

SUM = partial(mse_loss, reduction="sum")
SAYS_NOTHING = lambda prediction, target: mse_loss(prediction, target, reduction="sum")  # noqa: E731


DATA = TensorDataset(Numbered(2048).x, Numbered(2048).y)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def train(loss, optimizer=SGD, lr: float = 0.01, **arguments) -> tuple[AdaptiveDataLoader, set[float]]:
    """Two epochs; the loader, and the learning rates that were used."""
    trained, used = model(), set()
    steps = optimizer(trained.parameters(), lr)
    loader = AdaptiveDataLoader(DATA, BATCH, model=trained, optimizer=steps, shuffle=True, **GROWING | arguments)
    steps.register_step_pre_hook(lambda *_: used.add(steps.param_groups[0]["lr"]))
    for _ in loader.epochs(2):
        for x, y in loader:
            steps.zero_grad()
            loss(trained(x), y).backward()
            steps.step()
    assert all(p.isfinite().all() for p in trained.parameters())
    return loader, used


@pytest.mark.parametrize("loss", [SUM, nn.MSELoss(reduction="sum")])
@pytest.mark.parametrize("source", ["in_step", "halves"])
def test_a_loss_that_says_that_it_sums_holds_the_batch_of_sgd_from_the_beginning(loss, source, caplog):
    loader, used = train(loss, lr=0.01 / BATCH, loss_func=loss, source=source)
    assert loader.batch_size == BATCH and used == {0.01 / BATCH}
    assert loader.history.records[-1]["reason"] == HELD == loader.history.records[-1]["doubt"]
    assert caplog.text.count("reduction='mean'") == 1 and f"{BATCH} times" in caplog.text and len(caplog.records) == 1


@pytest.mark.parametrize("source", ["in_step", "halves"])
def test_one_that_does_not_say_so_is_found_out(source, caplog):
    loader, used = train(SAYS_NOTHING, lr=0.01 / BATCH, loss_func=SAYS_NOTHING, source=source)
    assert loader.batch_size == BATCH and used == {0.01 / BATCH}
    assert loader.history.records[-1]["reason"] == HELD
    assert caplog.text.count("reduction='mean'") == 1


@pytest.mark.parametrize("source", ["in_step", "halves"])
@pytest.mark.parametrize("loss", [SUM, SAYS_NOTHING])
def test_adams_step_is_the_same_and_nothing_is_held(loss, source, caplog):
    loader, _ = train(loss, Adam, loss_func=loss, source=source)
    assert loader.batch_size > BATCH and not caplog.text


def test_what_is_measured_of_a_sum_is_that_of_the_mean():
    loader, _ = train(SUM, Adam, loss_func=SUM)
    mean, _ = train(mse_loss, Adam, loss_func=mse_loss)
    first, same = loader.history.to_dict(), mean.history.to_dict()
    assert first["trace"][1] == pytest.approx(same["trace"][1], rel=1e-4)


class VAE(nn.Module):
    """Draws its code anew at each call, so two halves never add up exactly."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(8, 4), nn.Linear(2, 8)
        self.generator = generator

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, log_variance = self.encode(x).chunk(2, 1)
        code = torch.randn(mean.shape, generator=self.generator)
        return self.decode(mean + code * (0.5 * log_variance).exp())


def reconstruction(vae: nn.Module, batch) -> torch.Tensor:
    return mse_loss(vae(batch[0]), batch[0], reduction="sum")


@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("optimizer", [Adam, SGD])
def test_a_vae_whose_loss_was_given_is_taken_for_a_sum_and_not_for_a_loss_that_couples_samples(
    optimizer, own_generator, caplog
):
    torch.manual_seed(0)
    vae = VAE(torch.Generator().manual_seed(0) if own_generator else None)
    steps = optimizer(vae.parameters(), 1e-3)
    loader = AdaptiveDataLoader(
        DATA, BATCH, model=vae, optimizer=steps, shuffle=True, batch_loss=reconstruction, **GROWING
    )
    for _ in loader.epochs(3):
        for batch in loader:
            steps.zero_grad()
            reconstruction(vae, batch).backward()
            steps.step()
    if optimizer is Adam:
        assert loader.batch_size > BATCH and not caplog.text
    else:
        assert loader.history.records[-1]["reason"] == HELD and caplog.text.count("reduction='mean'") == 1


def test_the_mean_that_the_warning_asks_for_grows(caplog):
    loader, used = train(lambda p, y: SUM(p, y) / len(y), loss_func=mse_loss)
    assert loader.batch_size > BATCH and len(used) > 1 and not caplog.text


@pytest.mark.parametrize("stated", [{"transfer": ()}, {"lr_scaling": lambda k, noise_scale: 1.0}])
def test_who_says_what_becomes_of_the_learning_rate_is_not_held(stated, caplog):
    loader, used = train(SUM, lr=0.01 / BATCH, loss_func=SUM, **stated)
    assert loader.batch_size > BATCH and used == {0.01 / BATCH} and not caplog.text


def test_a_run_that_was_held_for_it_stays_so(caplog):
    loader, _ = train(SAYS_NOTHING, lr=0.01 / BATCH, loss_func=SAYS_NOTHING)
    trained = model()
    resumed = AdaptiveDataLoader(
        DATA, BATCH, model=trained, optimizer=SGD(trained.parameters(), 0.01), shuffle=True,
        loss_func=SAYS_NOTHING, epochs=2, **GROWING,
    )  # fmt: skip
    caplog.clear()
    resumed.load_state_dict(loader.state_dict())
    assert resumed.training_run.controller.holds.reason == HELD and not caplog.text
    assert resumed.training_run.scale()[:2] == (1.0, 1.0)


@pytest.mark.parametrize("loss", [SUM, SAYS_NOTHING])
def test_in_a_learner(loss, caplog):
    train_dl = FastaiLoader(DATA, bs=BATCH, shuffle=True, num_workers=0)
    callback = AdaptiveBatchSize(**GROWING)
    learn = Learner(DataLoaders(train_dl, train_dl.new(shuffle=False)), model(), loss_func=loss, opt_func=FastaiSGD)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 0.01 / BATCH, cbs=callback)
    assert callback.batch_size == BATCH and callback.history.records[-1]["reason"] == HELD
    assert all(p.isfinite().all() for p in learn.model.parameters())
    assert caplog.text.count("reduction='mean'") == 1

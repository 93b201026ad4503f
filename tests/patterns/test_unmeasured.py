"""Loops in which the noise scale cannot be measured: that is the reason, wherever a run says why its batch stayed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD

from adaptbs import AdaptiveDataLoader
from adaptbs.run.holds import UNMEASURED
from tests.integration.training import Numbered

BATCH, STEP_TIME = 16, (4e-3, 1e-6)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def real_and_made_up(model, x, y):
    """Two backward passes a step, as a discriminator's of a GAN."""
    nn.functional.mse_loss(model(x), y).backward()
    nn.functional.mse_loss(model(torch.randn_like(x)), -y).backward()


def penalized(model, x, y):
    """A penalty on the gradient with regard to the input, as WGAN-GP's."""
    x = x.requires_grad_()
    predicted = model(x)
    (slope,) = torch.autograd.grad(predicted.sum(), x, create_graph=True)
    (nn.functional.mse_loss(predicted, y) + ((slope.norm(dim=1) - 1) ** 2).mean()).backward()


def functional(model, x, y):
    """Gradients by torch.func, which leaves nothing to watch."""
    named = dict(model.named_parameters())

    def loss(parameters):
        return nn.functional.mse_loss(torch.func.functional_call(model, parameters, (x,)), y)

    for name, g in torch.func.grad(loss)({name: p.detach() for name, p in named.items()}).items():
        named[name].grad = g


def assigned(model, x, y):
    """Gradients by torch.autograd.grad, put where the optimizer looks for them."""
    parameters = list(model.parameters())
    for p, g in zip(parameters, torch.autograd.grad(nn.functional.mse_loss(model(x), y), parameters), strict=True):
        p.grad = g


def never_zeroed(model, x, y):
    (1e-3 * nn.functional.mse_loss(model(x), y)).backward()


CASES = [  # whether the loop sets gradients to zero, and what the warning says
    (real_and_made_up, True, "2 backward passes"),
    (penalized, True, "not the sum"),
    (functional, True, "leave no gradient"),
    (assigned, True, "leave no gradient"),
    (functional, False, "leave no gradient"),
    (assigned, False, "leave no gradient"),
    (never_zeroed, False, "zero_grad"),
]


def run(loop, zeroes: bool, **arguments) -> AdaptiveDataLoader:
    model = network()
    optimizer = SGD(model.parameters(), 0.01)
    loader = AdaptiveDataLoader(
        Numbered(512), BATCH, shuffle=True, model=model, optimizer=optimizer, epochs=3, step_time=STEP_TIME, **arguments
    )
    for _ in range(3):
        for x, y, _ in loader:
            if zeroes:
                optimizer.zero_grad()
            loop(model, x, y)
            optimizer.step()
    return loader


@pytest.mark.parametrize(("loop", "zeroes", "says"), CASES)
def test_the_reason_is_that_and_not_a_short_run(loop, zeroes, says, caplog):
    loader = run(loop, zeroes)
    assert loader.batch_size == BATCH
    assert caplog.text.count("so the batch size is held") == 1 and says in caplog.text
    summary = repr(loader.summary())
    assert UNMEASURED in summary and UNMEASURED in repr(loader) and "Too little" not in summary
    assert not loader.training_run.measuring.watches, "steps are watched for nothing"


@pytest.mark.parametrize(("loop", "zeroes", "says"), CASES)
def test_a_target_that_needs_no_noise_scale_goes_on(loop, zeroes, says, caplog):
    loader = run(loop, zeroes, target=lambda noise_scale, batch_size, progress: 32, lr_scaling="none")
    assert loader.batch_size == 32
    assert caplog.text.count("target= is given None for it") == 1 and "is held" not in caplog.text
    assert says in caplog.text


def near_the_start(epoch, distance, weight):
    """On the distance from where the weights began, as FedProx's, L2-SP's and EWC's. It is nothing at first."""
    return 1.0 * distance


def from_the_second_epoch(epoch, distance, weight):
    return 1.0 * weight if epoch else 0.0


@pytest.mark.parametrize("penalty", [near_the_start, from_the_second_epoch])
@pytest.mark.parametrize("loss_is_given", [False, True])
def test_a_penalty_on_weights_that_is_nothing_at_first(penalty, loss_is_given, caplog):
    model = network()
    begun = [p.detach().clone() for p in model.parameters()]
    optimizer = SGD(model.parameters(), 0.05)
    now = {"epoch": 0}

    def loss_of(model, batch):
        x, y, _ = batch
        distance = sum((p - p0).square().sum() for p, p0 in zip(model.parameters(), begun, strict=True))
        weight = sum(p.square().sum() for p in model.parameters())
        return nn.functional.mse_loss(model(x), y) + penalty(now["epoch"], distance, weight)

    loader = AdaptiveDataLoader(
        Numbered(1024), BATCH, shuffle=True, model=model, optimizer=optimizer, epochs=4, step_time=STEP_TIME,
        batch_loss=loss_of if loss_is_given else None,
    )  # fmt: skip
    for epoch in range(4):
        now["epoch"] = epoch
        for batch in loader:
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    if loss_is_given:
        assert not loader.training_run.measuring.meter.in_step and not caplog.records
        return
    assert caplog.text.count("not the sum") == len(caplog.records) == 1
    assert UNMEASURED in repr(loader)


def test_a_resumed_run_that_is_given_the_loss_measures():
    saved = run(real_and_made_up, True).state_dict()
    model = network()
    resumed = AdaptiveDataLoader(
        Numbered(512), BATCH, shuffle=True, model=model, optimizer=SGD(model.parameters(), 0.01), epochs=3,
        step_time=STEP_TIME, loss_func=nn.functional.mse_loss, source="halves",
    )  # fmt: skip
    assert UNMEASURED in saved["controller"]["holds"]
    resumed.load_state_dict(saved)
    assert UNMEASURED not in repr(resumed.noise_scale) and resumed.training_run.controller.holds.reason is None


@pytest.mark.parametrize("how", [{}, {"source": "halves", "loss_func": nn.functional.mse_loss}])
def test_a_batch_of_one_sample_is_told_so(how, caplog):
    model = network()
    optimizer = SGD(model.parameters(), 0.01)
    data = [(x, y) for x, y, _ in Numbered(256)]
    loader = AdaptiveDataLoader(data, 1, model=model, optimizer=optimizer, epochs=1, step_time=STEP_TIME, **how)
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    assert loader.batch_size == 1
    assert caplog.text.count("Start with batch_size= of 4 or more") == len(caplog.records) == 1
    assert "A step of one sample shows no noise" in repr(loader.summary())


@pytest.mark.parametrize(("batch_size", "measured"), [(2, False), (3, False), (4, True)])
def test_halves_too_short_for_batch_norm_are_told_so(batch_size, measured, caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 1))
    optimizer = SGD(model.parameters(), 0.01)
    data = [(x, y) for x, y, _ in Numbered(96)]
    loader = AdaptiveDataLoader(
        data, batch_size, model=model, optimizer=optimizer, epochs=1, step_time=STEP_TIME,
        loss_func=nn.functional.mse_loss,
    )  # fmt: skip
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    said = f"halves of a batch of {batch_size} are too short for BatchNorm"
    assert caplog.text.count(said) == caplog.text.count("batch_size= of 4 or more") == (not measured)
    assert ("Nothing was measured: with BatchNorm" in repr(loader.summary())) != measured
    assert (loader.noise_scale is not None) == measured


@pytest.mark.parametrize(
    ("batch_size", "layer", "said"),
    [(1, nn.Tanh(), "a batch of one sample has none"), (2, nn.BatchNorm1d(16), "halves of a batch of 2 are too short")],
)
def test_halves_of_batches_of_a_step_that_are_too_short_are_told_so(batch_size, layer, said, caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), layer, nn.Linear(16, 1))
    optimizer = SGD(model.parameters(), 0.01)
    data = [(x, y) for x, y, _ in Numbered(256)]
    loader = AdaptiveDataLoader(
        data, batch_size, model=model, optimizer=optimizer, epochs=1, step_time=STEP_TIME, accumulation_steps=8,
        loss_func=nn.functional.mse_loss, source="halves", overhead=0.5,
    )  # fmt: skip
    for i, (x, y) in enumerate(loader):
        nn.functional.mse_loss(model(x), y).div(8).backward()
        if i % 8 == 7:
            optimizer.step()
            optimizer.zero_grad()
    assert loader.batch_size == batch_size and loader.noise_scale is None
    assert caplog.text.count(said) == len(caplog.records) == 1
    assert "Nothing was measured. By halves that takes a `batch_size=`" in repr(loader.summary())


def test_a_run_that_diverges_is_told_that_and_not_that_it_was_short(caplog):
    model = network()
    optimizer = SGD(model.parameters(), 1e6)
    loader = AdaptiveDataLoader(
        Numbered(512), BATCH, shuffle=True, model=model, optimizer=optimizer, epochs=3, step_time=STEP_TIME
    )
    for _ in range(3):
        for x, y, _ in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).mul(torch.inf).backward()
            optimizer.step()
    assert loader.batch_size == BATCH and caplog.text.count("was not finite") == len(caplog.records) == 1
    summary = repr(loader.summary())
    assert "Most gradients were nan or inf" in summary and "Too little" not in summary

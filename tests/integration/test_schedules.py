"""Every torch scheduler, through forced growth, ends where it would have ended; and learning rates set by hand.

`test_torch_loop.py` has the commonest of them stepped once a batch; here are the others, and all of them once an epoch.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
from torch.optim import SGD, Adam
from torch.optim import lr_scheduler as schedulers

from adaptbs import one_cycle
from tests.integration.test_torch_loop import EPOCHS, PER_BATCH
from tests.integration.training import FORCED, Numbered, adaptive, doubling, network, stock, train

N = 1000
HYPERS = ("lr", "momentum", "betas")
# name: (optimizer, steps of an epoch) -> scheduler, beyond those of test_torch_loop.py
OTHERS = {
    "exponential": lambda o, n: schedulers.ExponentialLR(o, 0.99),
    "step": lambda o, n: schedulers.StepLR(o, n // 3, gamma=0.5),
    "constant": lambda o, n: schedulers.ConstantLR(o, 0.1, total_iters=n + n // 2),
    "polynomial": lambda o, n: schedulers.PolynomialLR(o, total_iters=EPOCHS * n, power=2),
    "multiplicative": lambda o, n: schedulers.MultiplicativeLR(o, lambda i: 0.98),
    "cyclic": lambda o, n: schedulers.CyclicLR(o, 1e-3, 0.1, step_size_up=n // 4),
    "three phases": lambda o, n: schedulers.OneCycleLR(o, 0.02, total_steps=EPOCHS * n, three_phase=True),
    "one cycle, linear": lambda o, n: schedulers.OneCycleLR(
        o, 0.02, total_steps=EPOCHS * n, anneal_strategy="linear", cycle_momentum=False
    ),
    "warm-up, then one cosine": lambda o, n: schedulers.SequentialLR(
        o,
        [schedulers.ConstantLR(o, 0.5, n), schedulers.CosineAnnealingLR(o, n), schedulers.ExponentialLR(o, 0.9)],
        milestones=[n // 4, EPOCHS * n - n // 4],
    ),
}  # fmt: skip
KINDS = {
    "SGD": lambda groups: SGD(groups, 0.01, momentum=0.9),
    "Adam": lambda groups: Adam(groups, 1e-3),
}


def two_groups(model) -> list[dict[str, Any]]:
    return [{"params": model[0].parameters(), "lr": 0.004}, {"params": model[1:].parameters()}]


def state(optimizer) -> list[Any]:
    """What schedulers move, of every group."""
    return [group[name] for group in optimizer.param_groups for name in HYPERS if name in group]


def flat(values: list[Any]) -> list[float]:
    return [float(x) for value in values for x in (value if isinstance(value, tuple) else (value,))]


def ended(make, grow: bool, kind: str = "SGD", groups=two_groups, per_epoch: bool = False):
    """(hyperparameters, scheduler) after a run, either way."""
    data, model = Numbered(N), network()
    optimizer = KINDS[kind](groups(model))
    n = 1 if per_epoch else len(stock(data))
    scheduler = make(optimizer, n)
    arguments = {"scheduler": scheduler, "target": doubling(), **FORCED}
    loader = adaptive(data, model, optimizer, **arguments) if grow else stock(data)
    run = train(model, optimizer, loader, EPOCHS, scheduler, per_epoch=per_epoch)
    assert (max(run.sizes) > 64) == grow, "it should have grown"
    return flat(state(optimizer)), scheduler


def the_same_end(make, **how) -> None:
    (ours, scheduler), (fixed, reference) = ended(make, True, **how), ended(make, False, **how)
    assert ours == pytest.approx(fixed, rel=1e-6)
    assert scheduler.last_epoch == reference.last_epoch if hasattr(reference, "last_epoch") else True
    assert flat(scheduler.get_last_lr()) == pytest.approx(flat(reference.get_last_lr()), rel=1e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_stepped_once_a_batch_it_ends_where_it_would_have_ended_with_groups_of_its_own(name):
    the_same_end(OTHERS[name])


PER_EPOCH = {
    "cosine": lambda o, n: schedulers.CosineAnnealingLR(o, T_max=EPOCHS),
    "warm restarts": lambda o, n: schedulers.CosineAnnealingWarmRestarts(o, T_0=3),
    "linear": lambda o, n: schedulers.LinearLR(o, total_iters=EPOCHS),
    "multi-step": lambda o, n: schedulers.MultiStepLR(o, [1]),
    "lambda": PER_BATCH["lambda"],
    "sequential": PER_BATCH["sequential"],
    "chained": PER_BATCH["chained"],
    "one cycle": lambda o, n: schedulers.OneCycleLR(o, 0.02, total_steps=EPOCHS),
    "exponential": OTHERS["exponential"],
    "step": lambda o, n: schedulers.StepLR(o, 1, gamma=0.5),
    "constant": lambda o, n: schedulers.ConstantLR(o, 0.1, total_iters=2),
    "polynomial": OTHERS["polynomial"],
    "multiplicative": OTHERS["multiplicative"],
    "cyclic": lambda o, n: schedulers.CyclicLR(o, 1e-3, 0.1, step_size_up=3),
}


@pytest.mark.parametrize("name", PER_EPOCH)
def test_stepped_once_an_epoch_it_ends_where_it_would_have_ended(name):
    the_same_end(PER_EPOCH[name], per_epoch=True)


@pytest.mark.parametrize("name", ["one cycle", "cosine", "chained"])
def test_a_learning_rate_of_each_group(name):
    """Those of test_torch_loop.py have one group."""
    the_same_end(PER_BATCH[name])


@pytest.mark.parametrize("kind", KINDS)
def test_one_cycles_momentum_ends_where_it_would_have_ended(kind):
    def make(optimizer, n):
        return schedulers.OneCycleLR(optimizer, [0.02, 0.04], total_steps=EPOCHS * n, cycle_momentum=True)

    the_same_end(make, kind=kind)
    (values, _), lowest = ended(make, True, kind=kind), 0.85
    assert min(values[1], values[-1 if kind == "SGD" else -2]) > lowest, "it should have come back"


def test_a_scheduler_of_one_lambda_a_group():
    def make(optimizer, n):
        return schedulers.LambdaLR(optimizer, [lambda i: 1 / (1 + i), lambda i: 0.99**i])

    the_same_end(make)


@pytest.mark.parametrize("kind", ["cosine", "exponential", "one cycle"])
def test_a_schedule_resumed_by_last_epoch_ends_where_it_would_have_ended(kind):
    """torch's own way of resuming: a new scheduler of the old optimizer, which begins at step `last_epoch`."""

    def make(optimizer, n, last_epoch=-1):
        return {
            "cosine": lambda: schedulers.CosineAnnealingLR(optimizer, 2 * EPOCHS * n, last_epoch=last_epoch),
            "exponential": lambda: schedulers.ExponentialLR(optimizer, 0.99, last_epoch=last_epoch),
            "one cycle": lambda: schedulers.OneCycleLR(
                optimizer, 0.02, total_steps=2 * EPOCHS * n, last_epoch=last_epoch
            ),
        }[kind]()  # fmt: skip

    def resumed(optimizer, n):
        first = make(optimizer, n)
        for _ in range(EPOCHS * n):
            optimizer.step()
            first.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a step before the first optimizer.step(), which has been made
            return make(optimizer, n, last_epoch=EPOCHS * n - 1)

    the_same_end(resumed)


def test_reduce_on_plateau_stepped_by_a_metric_does_what_it_does_without_adaptbs():
    """A loop of its own, as its step takes a metric."""

    def run(grow: bool) -> tuple[float, type]:
        data, model = Numbered(N), network()
        optimizer = SGD(model.parameters(), 0.01)
        scheduler = schedulers.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        loader = stock(data)
        if grow:
            loader = adaptive(data, model, optimizer, epochs=4, scheduler=scheduler, target=doubling(), **FORCED)
        for metric in (1.0, 2.0, 3.0, 0.5):
            train(model, optimizer, loader, 1)
            scheduler.step(metric)
        return optimizer.param_groups[0]["lr"], type(scheduler)

    assert run(True) == run(False) == (0.0025, schedulers.ReduceLROnPlateau)


def warm_up_and_decay(optimizer, n):
    """One by the batch, the other by the epoch; each multiplies what it finds, so they go together."""
    return schedulers.ExponentialLR(optimizer, 0.99), schedulers.StepLR(optimizer, 1, gamma=0.5)


@pytest.mark.parametrize("given", [0, 1], ids=["by the batch", "by the epoch"])
def test_of_two_schedulers_one_is_given_and_the_other_keeps_its_own_pace(given):
    """`scheduler=` takes one. The other makes a step at each call: right once an epoch, too few once a batch."""
    data, model = Numbered(N), network()
    optimizer = SGD(model.parameters(), 0.01)
    n = len(stock(data))
    pair = warm_up_and_decay(optimizer, n)
    loader = adaptive(data, model, optimizer, scheduler=pair[given], target=doubling(), **FORCED)
    batches = 0
    for _ in range(EPOCHS):
        for _ in loader:
            optimizer.step()
            pair[0].step()
            batches += 1
        pair[1].step()
    assert batches < EPOCHS * n / 2
    assert pair[1].last_epoch == EPOCHS
    assert pair[0].last_epoch == (EPOCHS * n if given == 0 else batches)
    expected = 0.01 * 0.5**EPOCHS * 0.99 ** pair[0].last_epoch
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_two_schedulers_by_the_batch_are_given_as_one():
    def make(optimizer, n):
        return schedulers.ChainedScheduler([
            schedulers.ExponentialLR(optimizer, 0.99), schedulers.LinearLR(optimizer, total_iters=n)
        ])  # fmt: skip

    the_same_end(make)


def test_a_learning_rate_of_ones_own_follows_the_progress_through_growth():
    """`one_cycle(loader.progress, ...)` in the loop: what a fixed batch would have at that share of the data."""
    data, model = Numbered(N), network()
    optimizer = SGD(model.parameters(), 0.01)
    loader = adaptive(data, model, optimizer, target=doubling(), **FORCED)
    assert loader.progress == 0
    seen, inside = 0, []
    optimizer.register_step_pre_hook(lambda *_: inside.append(optimizer.param_groups[0]["lr"]))
    for _ in range(EPOCHS):
        for batch in loader:
            seen += len(batch[2])
            assert loader.progress == pytest.approx(seen / (EPOCHS * N))
            lr = optimizer.param_groups[0]["lr"] = one_cycle(loader.progress, 0.1)
            optimizer.step()
            assert optimizer.param_groups[0]["lr"] == lr
            assert inside[-1] == pytest.approx(lr * loader.lr_factor)
    assert loader.batch_size == 256
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 1e5)
    assert math.isclose(loader.progress, 1)


def test_the_progress_of_a_run_of_unknown_length_is_not_known():
    model = network()
    loader = adaptive(Numbered(64), model, SGD(model.parameters(), 0.01), epochs=None, **FORCED)
    assert loader.progress is None


def test_a_call_that_a_saved_loop_still_owes_is_made_to_its_place_by_the_resumed_one():
    """It had been one step, as a call between two epochs is."""

    def parts():
        model = network()
        optimizer = SGD(model.parameters(), 0.1)
        scheduler = schedulers.CosineAnnealingLR(optimizer, 2 * N // 20)
        grows = FORCED | {"target": lambda noise, size, progress: 20 if progress < 0.3 else 80}
        return optimizer, scheduler, adaptive(Numbered(N), model, optimizer, 20, scheduler=scheduler, **grows)

    run = optimizer, scheduler, loader = parts()
    places = []
    for _ in loader.epochs(2):
        for batch in loader:
            optimizer.step()
            states = [part.state_dict() for part in run]
            scheduler.step()
            again = parts()
            for part, state in zip(again, states, strict=True):
                part.load_state_dict(state)
            again[1].step()
            assert again[1].last_epoch == scheduler.last_epoch, f"at {loader.progress:.2f}"
            places.append((len(batch[2]), scheduler.last_epoch))
    assert max(places)[0] == 80 and places[-1][1] == 2 * N // 20

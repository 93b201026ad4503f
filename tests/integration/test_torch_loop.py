"""AdaptiveDataLoader in a user's own loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim import lr_scheduler as schedulers

from adaptbs import AdaptiveDataLoader
from tests.integration.training import FORCED, Numbered, adaptive, doubling, loss_of, network, stock, train
from tests.problems import digits

EPOCHS = 2
OPTIMIZERS = {
    "sgd": lambda model: SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4),
    "adamw": lambda model: AdamW(model.parameters(), 1e-3),
    "rmsprop": lambda model: RMSprop(model.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4),
}


def one_cycle(optimizer, data, batch_size: int = 16, drop_last: bool = False):
    steps = len(stock(data, batch_size, drop_last=drop_last))
    return schedulers.OneCycleLR(optimizer, 0.02, total_steps=EPOCHS * steps)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("measuring", [False, True], ids=["off", "measuring"])
def test_a_batch_that_never_changes_leaves_training_as_it_was_to_the_bit(name, workers, measuring):
    data = Numbered(200)

    def run(is_adaptive: bool):
        model = network()
        optimizer = OPTIMIZERS[name](model)
        scheduler = one_cycle(optimizer, data)
        loader = stock(data, num_workers=workers)
        if is_adaptive:
            quiet = {} if measuring else {"overhead": 0}
            loader = adaptive(
                data, model, optimizer, num_workers=workers, max_batch_size=16, scheduler=scheduler, **quiet
            )
        torch.manual_seed(1)
        return train(model, optimizer, loader, EPOCHS, scheduler), loader

    fixed, _ = run(False)
    ours, loader = run(True)
    assert ours.epochs == fixed.epochs
    assert torch.equal(ours.weights, fixed.weights)
    assert ("measurement" in loader.history.to_dict()["event"]) == measuring


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("n, start", [(500, 16), (501, 16), (498, 12)])
def test_growth_sees_each_sample_once_at_the_fixed_runs_learning_rate(n, start, workers, drop_last):
    data = Numbered(n)
    model = network()
    optimizer = OPTIMIZERS["adamw"](model)
    scheduler = one_cycle(optimizer, data, start, drop_last)
    loader = adaptive(
        data, model, optimizer, start,
        num_workers=workers, drop_last=drop_last, scheduler=scheduler, target=doubling(), **FORCED,
    )  # fmt: skip
    run = train(model, optimizer, loader, EPOCHS, scheduler)
    delivered = n - n % start if drop_last else n
    for epoch in run.epochs:
        assert len(epoch) == len(set(epoch)) == delivered
    assert max(run.sizes) > 4 * start
    reference = network()
    fixed_optimizer = OPTIMIZERS["adamw"](reference)
    fixed_scheduler = one_cycle(fixed_optimizer, data, start, drop_last)
    fixed = train(reference, fixed_optimizer, stock(data, start, drop_last=drop_last), EPOCHS, fixed_scheduler)
    at = dict(zip(fixed.samples, fixed.lrs, strict=True))
    compared = [(lr, at[s]) for s, lr in zip(run.samples, run.lrs, strict=True) if s in at]
    assert len(compared) > 8
    for lr, expected in compared:
        assert lr == pytest.approx(expected, rel=1e-6)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(fixed_optimizer.param_groups[0]["lr"], rel=1e-6)
    assert scheduler.last_epoch == scheduler.total_steps


def test_the_learning_rate_is_scaled_inside_the_step_and_nowhere_else():
    data, model = Numbered(), network()
    optimizer = SGD(model.parameters(), 0.01)
    loader = adaptive(data, model, optimizer, target=doubling(), **FORCED)
    run = train(model, optimizer, loader, EPOCHS)
    assert set(run.lrs) == {0.01}
    nominal = dict(zip(run.samples, run.used, strict=True))
    factors = sorted({round(lr / 0.01, 6) for lr in nominal.values()})
    assert factors == [1, 2, 4, 8, 16]  # linear for SGD
    assert optimizer.param_groups[0]["lr"] == 0.01
    last_tail = run.used[-1] / 0.01
    assert run.sizes[-1] < 256 and last_tail == 16, "an epoch's short last batch keeps its learning rate"
    loader.close()
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_a_step_that_raises_does_not_leave_a_scaled_learning_rate():
    data, model = Numbered(), network()
    optimizer = SGD(model.parameters(), 0.01)
    loader = adaptive(data, model, optimizer, target=lambda noise, bs, p: 64, **FORCED)
    batches = iter(loader)
    loss_of(model, next(batches)).backward()
    next(batches)
    assert loader.lr_factor == 4

    def fails():
        raise RuntimeError("the closure failed")

    with pytest.raises(RuntimeError, match="closure failed"):
        optimizer.step(fails)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.04)
    next(batches)
    assert optimizer.param_groups[0]["lr"] == 0.01


PER_BATCH = {
    "one cycle": lambda o, n: schedulers.OneCycleLR(o, 0.02, total_steps=EPOCHS * n),
    "cosine": lambda o, n: schedulers.CosineAnnealingLR(o, T_max=EPOCHS * n),
    "warm restarts": lambda o, n: schedulers.CosineAnnealingWarmRestarts(o, T_0=n),
    "linear": lambda o, n: schedulers.LinearLR(o, total_iters=EPOCHS * n),
    "multi-step": lambda o, n: schedulers.MultiStepLR(o, [n // 2, n, 3 * n // 2]),
    "lambda": lambda o, n: schedulers.LambdaLR(o, lambda i: 1 / (1 + i)),
    "sequential": lambda o, n: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, total_iters=n), schedulers.ExponentialLR(o, 0.99)], milestones=[n]
    ),
    "chained": lambda o, n: schedulers.ChainedScheduler([schedulers.ExponentialLR(o, 0.99), schedulers.StepLR(o, n)]),
}


@pytest.mark.parametrize("name", PER_BATCH)
def test_every_scheduler_ends_where_it_would_have_ended(name):
    data = Numbered(1000)
    steps = len(stock(data))

    def last_lr(grow: bool) -> float:
        model = network()
        optimizer = SGD(model.parameters(), 0.01)
        scheduler = PER_BATCH[name](optimizer, steps)
        if grow:
            loader = adaptive(data, model, optimizer, scheduler=scheduler, target=doubling(), **FORCED)
            assert "step" not in scheduler.state_dict()
        else:
            loader = stock(data)
        train(model, optimizer, loader, EPOCHS, scheduler)
        return optimizer.param_groups[0]["lr"]

    assert last_lr(True) == pytest.approx(last_lr(False), rel=1e-6)


def test_a_scheduler_stepped_once_an_epoch_is_left_at_its_pace():
    data, model = Numbered(), network()
    optimizer = SGD(model.parameters(), 0.01)
    scheduler = schedulers.CosineAnnealingLR(optimizer, T_max=EPOCHS)
    loader = adaptive(data, model, optimizer, scheduler=scheduler, epochs=None, target=doubling(), **FORCED)
    run = train(model, optimizer, loader, EPOCHS, scheduler, per_epoch=True)
    assert max(run.sizes) == 256
    assert scheduler.last_epoch == EPOCHS
    assert loader.history.to_dict()["progress"][-1] == pytest.approx(1, abs=0.3)  # T_max read as epochs


def test_a_scheduler_stepped_every_fourth_batch_ends_where_it_would_have_ended():
    data, model = Numbered(1024), network()
    optimizer = SGD(model.parameters(), 0.01)
    scheduler = schedulers.StepLR(optimizer, 1, gamma=0.99)
    second_epoch = lambda noise, bs, p: 32 if p >= 0.5 else 16  # noqa: E731
    loader = adaptive(data, model, optimizer, scheduler=scheduler, target=second_epoch, **FORCED)
    train(model, optimizer, loader, EPOCHS, scheduler, every=4)
    assert scheduler.last_epoch == EPOCHS * 1024 // 16 // 4


def test_reduce_on_plateau_is_left_alone():
    data, model = Numbered(100), network()
    optimizer = SGD(model.parameters(), 0.01)
    scheduler = schedulers.ReduceLROnPlateau(optimizer, patience=0)
    adaptive(data, model, optimizer, scheduler=scheduler)
    assert type(scheduler) is schedulers.ReduceLROnPlateau


def test_an_early_break_and_a_second_epoch():
    data, model = Numbered(500), network()
    optimizer = SGD(model.parameters(), 0.01)
    loader = adaptive(data, model, optimizer, target=doubling(), **FORCED)
    for i, _ in enumerate(loader):
        if i == 5:
            break
    indices = [i for batch in loader for i in batch[2].tolist()]
    assert sorted(indices) == list(range(500))


def test_unknown_length_of_the_run_is_said_and_paced_by_the_epoch(caplog):
    data, model = Numbered(500), network()
    optimizer = SGD(model.parameters(), 0.01)
    loader = adaptive(data, model, optimizer, epochs=None)
    train(model, optimizer, loader, 3)
    assert "length of the run is not known" in caplog.text
    decisions = loader.history.decisions()
    assert set(decisions["progress"]) == {None}
    assert len(decisions["event"]) > 3 * 10


def test_it_grows_on_real_digits_and_the_model_is_as_good():
    """Twice as noisy a task as it was: with one label in five wrong, a larger batch is worth having."""
    x, y = digits().tensors
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(y), generator=generator) < 0.2
    y = torch.where(wrong, torch.randint(10, y.shape, generator=generator), y)
    data, held_out = torch.utils.data.TensorDataset(x[:1400], y[:1400]), (x[1400:], y[1400:])

    def run(seed: int, is_adaptive: bool):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optimizer = AdamW(model.parameters(), 3e-3)
        if is_adaptive:
            loader = AdaptiveDataLoader(
                data, 16, shuffle=True, model=model, optimizer=optimizer, loss_func=nn.functional.cross_entropy,
                epochs=8, step_time=(4e-3, 1e-6), overhead=0.2,
            )  # fmt: skip
        else:
            loader = torch.utils.data.DataLoader(data, 16, shuffle=True)
        steps = 0
        for _ in range(8):
            for xb, yb in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(xb), yb).backward()
                optimizer.step()
                steps += 1
        with torch.no_grad():
            return steps, nn.functional.cross_entropy(model(held_out[0]), held_out[1]).item(), loader

    results = [(run(seed, False), run(seed, True)) for seed in range(3)]
    for (fixed_steps, _, _), (steps, _, loader) in results:
        assert steps < 0.7 * fixed_steps
        assert loader.batch_size >= 32
        assert loader.noise_scale.low > 0
    fixed = sum(loss for (_, loss, _), _ in results)
    ours = sum(loss for _, (_, loss, _) in results)
    assert ours < 1.05 * fixed


def test_gradients_that_are_not_finite_are_left_out_and_said_once(caplog):
    data, model = Numbered(400), network()
    data.x[::7] = float("nan")
    optimizer = SGD(model.parameters(), 0.0)
    loader = adaptive(data, model, optimizer, epochs=1, overhead=0.9, batch_loss=lambda m, b: loss_of(m, b))
    train(model, optimizer, loader, 1)
    assert caplog.text.count("not finite") == 1
    assert loader.noise_scale is None


def test_persistent_workers_deliver_each_sample_once_through_growth():
    data, model = Numbered(500), network()
    optimizer = SGD(model.parameters(), 0.01)
    loader = adaptive(
        data, model, optimizer, epochs=3, num_workers=2, persistent_workers=True, target=doubling(), **FORCED
    )
    run = train(model, optimizer, loader, 3)
    assert all(sorted(epoch) == list(range(500)) for epoch in run.epochs)
    assert max(run.sizes) == 256


def layer_normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 1))


def test_a_model_whose_layers_allow_it_is_measured_in_its_step_and_the_history_says_so():
    data, model = Numbered(400), layer_normed()
    optimizer = SGD(model.parameters(), 0.01)
    loader = adaptive(data, model, optimizer, overhead=0.5, step_time=(1.0, 0.0))
    train(model, optimizer, loader, 1)
    assert set(loader.history.to_dict()["source"]) - {None} == {"in step"}
    assert not any(m._forward_hooks for m in model.modules())


def test_the_noise_scale_of_each_group_and_in_adams_metric_beside_the_plain_one():
    data, model = Numbered(1600), layer_normed()
    groups = [{"params": list(model[:2].parameters())}, {"params": list(model[2:].parameters())}]
    optimizer = Adam(groups, 1e-3)
    loader = adaptive(data, model, optimizer, overhead=0.9, metric="adam", by_group=True, step_time=(1.0, 0.0))
    train(model, optimizer, loader, 1)
    assert set(loader.views) == {"adam", "group 0", "group 1"}
    columns = loader.history.decisions()
    assert columns["noise_scale_adam"][0] is None, "there is no v before the first step"
    for name in ("adam", "group_0", "group_1"):
        assert columns[f"low_{name}"][-1] >= 0
    pooled = sum(loader.views[f"group {i}"].trace for i in (0, 1))
    assert pooled == pytest.approx(loader.noise_scale.trace, rel=1e-4)

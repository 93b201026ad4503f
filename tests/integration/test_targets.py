"""Open-loop targets in whole runs: sizes as asked, each sample once, and the schedule at its end."""

from __future__ import annotations

import pytest
from fastai.callback.schedule import combined_cos
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from adaptbs.fastai import AdaptiveBatchSize
from adaptbs.targets import exponential_ramp, linear_ramp, on_plateau, seesaw, step_ramp
from tests.integration.fastai.learners import Watch, make_learner
from tests.integration.training import Numbered, adaptive, loss_of, network, train

EPOCHS, START, N = 4, 16, 800
OPTIONS = {"overhead": 0, "decide_every": 0.0001, "max_batch_size": 128}


def halving(progress: float) -> float:
    """Warms up for a fifth of the run, then is halved at the half and at three quarters of it."""
    return 5 * progress if progress < 0.2 else 1 if progress < 0.5 else 0.5 if progress < 0.75 else 0.25


#: Target, and the size wanted at a quarter, half, three quarters and the last batch of the run.
RAMPS = {
    "step": (lambda: step_ramp(START), (32, 64, 128, 128)),
    "linear": (lambda: linear_ramp(START, 80), (32, 48, 64, 80)),
    "exponential": (lambda: exponential_ramp(START, 64), (23, 32, 45, 64)),
    "seesaw": (lambda: seesaw(START, halving), (16, 32, 64, 64)),
}


def wanted(name: str, progress: float) -> int:
    return int(RAMPS[name][0]()(None, START, progress))


def as_asked(name: str, sizes: list[int], epoch_samples: int) -> None:
    """Every batch, but an epoch's last two (the tail is kept from being short), has the size wanted when it was cut."""
    seen = 0
    for size in sizes:
        if epoch_samples - seen % epoch_samples > 2 * size:
            assert size == wanted(name, seen / (EPOCHS * epoch_samples)), f"after {seen} samples"
        seen += size
    assert seen == EPOCHS * epoch_samples
    assert len(set(sizes)) > 2


@pytest.mark.parametrize("name", RAMPS)
def test_the_expected_sizes(name):
    make, sizes = RAMPS[name]
    assert tuple(int(make()(None, START, p)) for p in (0.25, 0.5, 0.75, 1)) == sizes


@pytest.mark.parametrize("name", RAMPS)
def test_in_a_plain_loop(name):
    data, model = Numbered(N), network()
    optimizer = AdamW(model.parameters(), 1e-3)
    scheduler = OneCycleLR(optimizer, 0.02, total_steps=EPOCHS * N // START)
    target = RAMPS[name][0]()
    loader = adaptive(data, model, optimizer, START, scheduler=scheduler, epochs=EPOCHS, target=target, **OPTIONS)
    run = train(model, optimizer, loader, EPOCHS, scheduler)
    as_asked(name, run.sizes, N)
    assert all(sorted(epoch) == list(range(N)) for epoch in run.epochs)
    assert scheduler.last_epoch == EPOCHS * N // START
    assert set(loader.history.to_dict()["reason"]) == {"start", "target"}


def test_a_target_is_asked_once_where_it_is_due_however_little_is_measured():
    data, model, asked = Numbered(4000), network(), []
    optimizer = AdamW(model.parameters(), 1e-3)

    def target(noise_scale, batch_size: int, progress: float) -> int:
        asked.append(progress)
        return batch_size

    how = {"epochs": 1, "target": target, "step_time": (1, 0.01), "budget": "epochs"}
    loader = adaptive(data, model, optimizer, 8, overhead=0.005, **how)  # pays for fewer measurements than decisions
    train(model, optimizer, loader, 1)
    assert "measurement" in loader.history.to_dict()["event"]
    assert asked == pytest.approx([0.05 * i for i in range(1, 21)])


@pytest.mark.parametrize("name", RAMPS)
def test_in_fastai(name):
    learn, watch = make_learner(bs=START, n=N), Watch()
    learn.fit_one_cycle(EPOCHS, 1e-2, cbs=[watch, AdaptiveBatchSize(target=RAMPS[name][0](), **OPTIONS)])
    as_asked(name, [size for epoch in watch.sizes for size in epoch], N)
    assert all(sorted(epoch) == list(range(N)) for epoch in watch.indices)
    assert learn.pct_train == pytest.approx(1)
    assert learn.dls.bs == START


def test_a_plateau_in_a_plain_loop():
    data, model = Numbered(N), network()
    optimizer = AdamW(model.parameters(), 1e-3)
    validation: list[float] = []
    target = on_plateau(lambda: validation[-1] if validation else None, patience=1)
    loader = adaptive(data, model, optimizer, START, epochs=EPOCHS, target=target, **OPTIONS)
    sizes: list[set[int]] = []
    for loss in (2.0, 1.0, 1.5, 0.5):  # what validation after each epoch comes to
        sizes.append(set())
        for batch in loader:
            sizes[-1].add(loader.batch_size)
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
        validation.append(loss)
    assert sizes[:3] == [{16}, {16}, {16}]
    assert 32 in sizes[3] and sizes[3] <= {16, 32}  # (its first batch was cut before the target was asked again)


def test_a_plateau_in_fastai():
    learn, watch = make_learner(bs=START, n=N, lr=0.0), Watch()  # whose loss never improves
    target = on_plateau(lambda: learn.recorder.values[-1][1] if learn.recorder.values else None, patience=1)
    learn.fit(EPOCHS, 0.0, cbs=[watch, AdaptiveBatchSize(target=target, **OPTIONS)])
    assert [max(epoch) for epoch in watch.sizes] == [16, 16, 32, 64]
    assert all(sorted(epoch) == list(range(N)) for epoch in watch.indices)


def test_seesaw_with_adam_cuts_by_the_square_root_of_fastais_schedule():
    """Where one-cycle has come down to a quarter, the learning rate is at a half and the batch four times as large."""
    learn = make_learner(bs=START, n=N)
    callback = AdaptiveBatchSize(target=seesaw(START, combined_cos(0.25, 1 / 25, 1, 1e-5)), **OPTIONS)
    learn.fit_one_cycle(EPOCHS, 1e-2, cbs=callback)
    fixed = combined_cos(0.25, 1 / 25, 1, 1e-5)
    used = callback.history.to_dict()
    for progress, size, factor in zip(used["progress"], used["batch_size"], used["lr_factor"], strict=True):
        s, k = float(fixed(progress)), size / START
        assert factor == k**0.5
        if progress > 0.25 and size < OPTIONS["max_batch_size"]:
            assert 1 / k >= s > 1 / (2 * k)  # grown by as many factors of 2 as the schedule was cut by
            assert s**0.5 / 2**0.5 < s * factor <= s**0.5
    assert max(used["batch_size"]) == OPTIONS["max_batch_size"]

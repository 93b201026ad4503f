"""prior=: what is known before the run sets the first batch, and what the run measures takes its place."""

from dataclasses import replace

import pytest
import torch
from torch.optim import Adam

from adaptbs import AdaptiveDataLoader, bs_find
from adaptbs.fastai import AdaptiveBatchSize
from adaptbs.memory.limit import MemoryLimit
from adaptbs.run.controller import Controller
from adaptbs.run.settings import Settings
from adaptbs.types import ENOUGH, Measurement, NoiseScale, SquaredNorms
from tests.problems import digits, digits_mlp

KNOWN = NoiseScale(grad_sq=1.0, trace=4000.0, low=4000.0, high=4000.0, cautious=4000.0, measurements=9)
QUIET = Measurement(SquaredNorms(1, 2.0, 2, 1.5), "halves", "asked for")  # |G|^2 = 1, tr(Sigma) = 1


def controller(**settings) -> Controller:
    run = Controller(
        Settings(step_time=(1.0, 0.0), overhead=0.05, **settings), batch_size=64, epoch_samples=64_000, adaptive=True
    )
    run.start(1, torch.device("cpu"), MemoryLimit())
    return run


def step(run: Controller, *, measures: bool = True) -> None:
    progress, size = run.progress_tracker, run.batch_size
    progress.count(size, size, 0, progress.samples + size, 1.0)
    if measures:
        run.measured(QUIET)
    run.step_ended(size, size, size)


def test_the_first_measured_step_is_followed_by_a_decision_that_goes_by_it():
    run = controller(prior=KNOWN)
    assert run.measure_next_step()
    step(run)
    assert run.noise_scale == KNOWN
    assert run.batch_size > 64
    unknowing = controller()
    step(unknowing)
    assert unknowing.batch_size == 64


def test_what_the_run_measures_takes_its_place():
    run = controller(prior=KNOWN)
    for _ in range(ENOUGH):
        step(run)
    estimate = run._read()
    assert (estimate.simple, estimate.measurements) == (1.0, ENOUGH)


def test_it_is_used_once_while_nothing_is_measured():
    run = controller(prior=KNOWN)
    step(run)
    grown = run.batch_size
    for _ in range(900):
        step(run, measures=False)
    assert run.batch_size == grown
    assert "nothing new" in run.history.to_dict()["reason"]


def test_it_is_forgotten_with_the_measurements():
    run = controller(prior=KNOWN)
    run.forget_measurements()
    step(run, measures=False)
    assert run._read() is None


def test_a_resumed_run_goes_by_it_as_the_saved_one_would():
    saved, resumed = controller(prior=KNOWN), controller(prior=KNOWN)
    step(saved)
    resumed.load_state_dict(saved.state_dict())
    assert resumed.noise_scale == resumed._read() == KNOWN
    assert resumed.batch_size == saved.batch_size


def test_it_holds_the_batch_where_it_says_nothing():
    run = controller(prior=replace(KNOWN, low=0.0, cautious=0.0))
    step(run)
    assert run.batch_size == 64


@pytest.mark.parametrize("other", [300, 300.0, "auto", {"noise_scale": 300}, ()])
def test_other_things_are_refused(other):
    with pytest.raises(TypeError, match=r"prior=.*bs_find\(\.\.\.\) returned, or a NoiseScale"):
        Settings(prior=other)


def test_what_bs_find_returned_is_taken_by_loader_and_callback():
    model, data = digits_mlp(), digits()
    optimizer = Adam(model.parameters())
    loss = torch.nn.functional.cross_entropy
    found = bs_find(model, loss, torch.utils.data.DataLoader(data, 16), num_it=40, lr=1e-3, optimizer=optimizer)
    assert AdaptiveBatchSize(prior=found)._settings.known_before == found.curve[-1]
    loader = AdaptiveDataLoader(data, 64, shuffle=True, model=model, optimizer=optimizer, prior=found)
    controller = loader.training_run.controller
    for i, (x, y) in enumerate(loader):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
        if i == 1:  # the decision after the first step is made when the second is asked for
            break
    assert controller.noise_scale == found.curve[-1]

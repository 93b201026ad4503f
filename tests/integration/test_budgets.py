"""Runs that end by their progress: plain loops and fastai."""


import pytest
import torch
from fastai.callback.core import Callback
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.fastai import AdaptiveBatchSize
from tests.integration.fastai.learners import make_learner

N, EPOCHS, START = 640, 4, 8


def setup(*, schedule: str | None = "steps", start: int = START, **settings):
    """A noisy linear problem, and a loader over it that may be told everything."""
    torch.manual_seed(0)
    x = torch.randn(N, 4)
    data = TensorDataset(x, x.sum(1, keepdim=True) + 3 * torch.randn(N, 1))
    model = nn.Linear(4, 1)
    optimizer = SGD(model.parameters(), 0.01)
    steps = EPOCHS * -(-N // start)
    scheduler = {
        "steps": lambda: OneCycleLR(optimizer, 0.01, total_steps=steps, cycle_momentum=False),
        "epochs": lambda: CosineAnnealingLR(optimizer, EPOCHS),
        None: lambda: None,
    }[schedule]()
    settings = {"step_time": (1.0, 0.0), "overhead": 0.5} | settings
    loader = AdaptiveDataLoader(
        data, start, shuffle=True, generator=torch.Generator().manual_seed(1), model=model, optimizer=optimizer,
        scheduler=scheduler, epochs=EPOCHS, **settings,
    )  # fmt: skip
    return loader, model, optimizer, scheduler


def train(loader, model, optimizer, scheduler, epochs, each="steps"):
    """A plain loop; the epochs' numbers and their samples."""
    seen = []
    for epoch in epochs:
        samples = 0
        for xb, yb in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(xb), yb).backward()
            optimizer.step()
            if scheduler is not None and each == "steps":
                scheduler.step()
            samples += len(xb)
        if scheduler is not None and each == "epochs":
            scheduler.step()
        seen.append((epoch, samples))
    return seen


def test_a_batch_that_grows_is_given_more_samples_and_the_schedule_ends():
    loader, model, optimizer, scheduler = setup(target=lambda *_: 64)
    seen = train(loader, model, optimizer, scheduler, loader.epochs(EPOCHS))
    assert [epoch for epoch, _ in seen] == list(range(EPOCHS)), "n asked are n shown"
    assert EPOCHS * N < sum(n for _, n in seen) <= 2 * EPOCHS * N
    assert any(n > N for _, n in seen), "an epoch is a share of the progress, which may take more than a pass"
    assert scheduler.last_epoch == EPOCHS * N // START
    assert loader.history.to_dict()["progress"][-1] <= 1
    assert list(loader.epochs(EPOCHS)) == [], "the run is over"


def test_at_the_reference_it_is_the_run_of_a_stock_loader_to_the_bit():
    loader, model, optimizer, scheduler = setup(max_batch_size=START)
    twin, stock, twin_optimizer, twin_scheduler = setup(max_batch_size=START)
    twin.close()
    plain = DataLoader(twin.dataset, START, shuffle=True, generator=torch.Generator().manual_seed(1))
    seen = train(loader, model, optimizer, scheduler, loader.epochs(EPOCHS))
    twin_scheduler.__class__ = OneCycleLR  # no longer driven
    train(plain, stock, twin_optimizer, twin_scheduler, range(EPOCHS))
    assert seen == [(epoch, N) for epoch in range(EPOCHS)]
    assert torch.equal(model.weight, stock.weight)


def test_a_scheduler_stepped_once_an_epoch_ends_too():
    loader, model, optimizer, scheduler = setup(schedule="epochs", target=lambda *_: 64)
    seen = train(loader, model, optimizer, scheduler, loader.epochs(EPOCHS), each="epochs")
    assert len(seen) == EPOCHS
    assert scheduler.last_epoch == EPOCHS
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("settings", [{"budget": "epochs"}, {"overhead": 0}, {"max_extra": 0}])
def test_without_a_budget_of_progress_or_a_measure_of_it_epochs_are_epochs(settings):
    loader, *rest = setup(target=lambda *_: 64, **settings)
    assert train(loader, *rest, loader.epochs(EPOCHS)) == [(epoch, N) for epoch in range(EPOCHS)]


def test_a_plain_loop_keeps_its_samples():
    loader, *rest = setup(target=lambda *_: 64)
    assert train(loader, *rest, range(EPOCHS)) == [(epoch, N) for epoch in range(EPOCHS)]


def test_epochs_tells_the_length_where_nothing_else_does():
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    loader = AdaptiveDataLoader(
        TensorDataset(torch.ones(64, 1), torch.zeros(64, 1)), 4, model=model, step_time=(1.0, 0.0),
        optimizer=SGD(model.parameters(), 0.01),
    )  # fmt: skip
    assert [(epoch, len(list(loader))) for epoch in loader.epochs(2)] == [(0, 16), (1, 16)]
    assert loader.history.to_dict()["progress"][-1] == 1


def test_another_length_than_was_said_is_refused_and_changes_nothing():
    loader, *rest = setup()
    with pytest.raises(ValueError, match=r"epochs\(3\): the run has 4 epochs: give epochs=3"):
        loader.epochs(3)
    assert len(train(loader, *rest, loader.epochs(EPOCHS))) == EPOCHS


def test_a_run_stopped_between_epochs_goes_on_as_if_it_never_was():
    whole, stopped, resumed = (setup(schedule=None) for _ in range(3))
    expected = train(*whole, whole[0].epochs(EPOCHS))
    epochs = stopped[0].epochs(EPOCHS)
    begun = train(*stopped, (next(epochs) for _ in range(2)))
    loader, model, optimizer, _ = resumed
    loader.load_state_dict(stopped[0].state_dict())
    loader.generator.set_state(stopped[0].generator.get_state())
    model.load_state_dict(stopped[1].state_dict())
    optimizer.load_state_dict(stopped[2].state_dict())
    assert begun + train(*resumed, loader.epochs(EPOCHS)) == expected
    assert torch.equal(model.weight, whole[1].weight)


def test_an_epoch_whose_body_does_nothing_or_breaks_off_is_one_epoch():
    loader = setup()[0]
    for i, _ in enumerate(loader.epochs(EPOCHS)):
        if i % 2:
            next(iter(loader))
    assert i + 1 == EPOCHS


class Epochs(Callback):
    """Notes what other callbacks see."""

    order = 70

    def __init__(self):
        self.begun, self.ended, self.shown, self.pct, self.samples, self.valid = [], [], [], [], 0, 0

    def before_epoch(self):
        self.begun.append(self.epoch)
        self.shown.append(self.n_epoch)

    def after_batch(self):
        if self.training:
            self.samples += len(self.xb[0])
            self.pct.append(self.learn.pct_train)

    def after_validate(self):
        self.valid += 1

    def after_epoch(self):
        self.ended.append(self.epoch)


ROWS, BS = 203, 8


def fit(**settings):
    learn, seen = make_learner(BS, ROWS), Epochs()
    callback = AdaptiveBatchSize(step_time=(1.0, 0.0), overhead=0.5, **settings)
    learn.fit_one_cycle(EPOCHS, 0.01, cbs=[callback, seen])
    return learn, seen, callback


def test_in_fastai_epochs_asked_are_epochs_shown_validated_and_counted():
    learn, seen, callback = fit(target=lambda *_: 8 * BS, max_batch_size=8 * BS)
    planned = EPOCHS * ROWS
    assert seen.begun == seen.ended == list(range(EPOCHS))
    assert seen.valid == len(learn.recorder.values) == EPOCHS
    assert seen.shown == [EPOCHS] * EPOCHS
    assert planned < seen.samples <= 2 * planned
    assert seen.pct == sorted(seen.pct)
    assert seen.pct[-1] == pytest.approx(1)
    assert callback.history.to_dict()["progress"][-1] <= 1
    samples = [row[learn.recorder.metric_names.index("samples") - 1] for row in learn.recorder.values]
    assert sum(samples) == seen.samples, "the table says how many each epoch took"


def test_in_fastai_a_budget_of_epochs_keeps_them():
    _, seen, _ = fit(target=lambda *_: 8 * BS, max_batch_size=8 * BS, budget="epochs")
    assert seen.begun == list(range(EPOCHS))
    assert seen.samples == EPOCHS * ROWS


def test_in_fastai_the_bar_over_the_batches_ends_with_the_epoch():
    learn, ends = make_learner(BS, ROWS, progress=True), []

    class Bar(Callback):
        order = 75

        def after_train(self):
            bar = self.learn.progress.pbar
            ends.append((self.learn.progress.mbar.main_bar.total, bar.total, self.iter + 1))

    callback = AdaptiveBatchSize(
        step_time=(1.0, 0.0), overhead=0.5, target=lambda *_: 8 * BS, max_batch_size=8 * BS
    )  # fmt: skip
    learn.fit_one_cycle(EPOCHS, 0.01, cbs=[callback, Bar()])
    assert len(ends) == EPOCHS
    assert all(epochs == EPOCHS and total == batches for epochs, total, batches in ends)


def test_in_fastai_a_second_fit_is_a_run_of_its_own():
    learn = make_learner(BS, ROWS)
    callback = AdaptiveBatchSize(
        step_time=(1.0, 0.0), overhead=0.5, target=lambda *_: 8 * BS, max_batch_size=8 * BS
    )  # fmt: skip
    for _ in range(2):
        seen = Epochs()
        learn.fit_one_cycle(EPOCHS, 0.01, cbs=[callback, seen])
        assert len(seen.begun) == EPOCHS
        assert seen.samples > EPOCHS * ROWS
        assert seen.pct[0] < 0.1


@pytest.mark.parametrize("workers", [0, 1])
def test_after_the_run_an_iteration_is_a_whole_epoch_that_counts_for_nothing(caplog, workers):
    """As of `swa_utils.update_bn`, or whoever wants to know the accuracy on what was trained on."""
    loader, *rest = setup(target=lambda *_: 64, num_workers=workers, persistent_workers=workers > 0)
    train(loader, *rest, loader.epochs(EPOCHS))
    state = loader.state_dict()
    for _ in range(2):
        assert sum(len(xb) for xb, _ in loader) == N
    assert loader.state_dict()["controller"]["progress"] == state["controller"]["progress"]
    assert len(loader.history) == len(state["controller"]["history"])
    assert caplog.text.count("the run is over") == 1


def test_in_the_last_epoch_too():
    loader, *rest = setup(target=lambda *_: 64)
    seen = []
    for _ in loader.epochs(EPOCHS):
        train(loader, *rest, [0])
        if loader.progress == 1:
            seen.append(sum(len(xb) for xb, _ in loader))
    assert seen == [N]


def test_a_run_that_is_over_says_why_it_has_no_epochs_left(caplog):
    loader, *rest = setup()
    train(loader, *rest, loader.epochs(EPOCHS))
    assert not caplog.text
    assert list(loader.epochs(EPOCHS)) == []
    assert "the run is over" in caplog.text


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nobody_trains_so_nothing_counts(caplog, mode):
    loader, *rest = setup(target=lambda *_: 64)
    for _ in loader.epochs(EPOCHS):
        train(loader, *rest, [0])
        known = loader.progress, len(loader.history)
        with mode():
            assert sum(len(xb) for xb, _ in loader) == N
        assert (loader.progress, len(loader.history)) == known
    assert rest[-1].last_epoch == EPOCHS * N // START
    assert caplog.text.count("gradients are switched off") == 1

"""What a scheduler says of the run's length, where two readings are possible: its calls settle it."""

from __future__ import annotations

import functools

import pytest
from torch import nn
from torch.optim import SGD
from torch.optim import lr_scheduler as schedulers

from adaptbs import AdaptiveDataLoader
from tests.integration.training import FORCED, Numbered, adaptive, doubling, loss_of, network

N, BATCH = 1024, 16
STEPS = N // BATCH


def one_cycle(optimizer, total):
    return schedulers.OneCycleLR(optimizer, 0.1, total_steps=total)


def cosine(optimizer, total):
    return schedulers.CosineAnnealingLR(optimizer, total)


def partial(optimizer, total):
    def rate(step: int, num_training_steps: int) -> float:
        return max(0.0, 1 - step / num_training_steps)

    return schedulers.LambdaLR(optimizer, functools.partial(rate, num_training_steps=total))


class Run:
    """A loop over an adaptive loader that is given a scheduler and no epochs."""

    def __init__(self, make, total: int, **arguments) -> None:
        self.model = network()
        self.optimizer = SGD(self.model.parameters(), 0.01)
        self.scheduler = make(self.optimizer, total)
        arguments = {"epochs": None, "target": doubling(4), **FORCED} | arguments
        self.loader = adaptive(Numbered(N), self.model, self.optimizer, BATCH, scheduler=self.scheduler, **arguments)
        self.seen = self.batches = 0

    def epoch(self, every: int = 1, per_epoch: bool = False, samples: int = 10**9) -> None:
        """An epoch, broken off after so many samples of the run."""
        for batch in self.loader:
            self.optimizer.zero_grad()
            loss_of(self.model, batch).backward()
            self.optimizer.step()
            self.seen, self.batches = self.seen + len(batch[2]), self.batches + 1
            if not per_epoch and self.batches % every == 0:
                self.scheduler.step()
            if self.seen >= samples:
                break
        if per_epoch:
            self.scheduler.step()


@pytest.mark.parametrize("batches", [2, 5, 16])
def test_short_epochs_without_a_length_are_not_measured_at_every_step(batches):
    """PPO's, over a buffer of some hundred samples. No plain step was ever timed, so no limit was ever reached."""
    model = nn.Linear(8, 1)
    optimizer = SGD(model.parameters(), 0.01)
    data = Numbered(batches * BATCH)
    loader = AdaptiveDataLoader(data, BATCH, shuffle=True, model=model, optimizer=optimizer, max_batch_size=BATCH)
    steps = 0
    for _ in range(240 // batches):
        for x, y, _ in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            steps += 1
    measured = sum(row["event"] == "measurement" for row in loader.history)
    assert 4 <= measured <= steps / 2


@pytest.mark.parametrize("make", [one_cycle, partial])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("total", [20, 40, STEPS - 1, STEPS + 7, 2 * STEPS + 20])
def test_a_run_of_so_many_batches(make, total, every, caplog):
    """Also one that is shorter than an epoch, and the batch that crosses its end."""
    run = Run(make, total)
    while run.seen < total * every * BATCH:
        run.epoch(every, samples=total * every * BATCH)
    assert run.loader.progress == pytest.approx(1, abs=1e-6)
    assert run.scheduler.last_epoch == pytest.approx(total, abs=every * run.loader.batch_size / BATCH)
    assert run.loader.batch_size > BATCH and not caplog.text


@pytest.mark.parametrize("make", [one_cycle, cosine, partial])
@pytest.mark.parametrize(("total", "per_epoch"), [(3 * STEPS, False), (3, True)])
def test_the_usual_readings_need_no_word(make, total, per_epoch, caplog):
    run = Run(make, total)
    for epoch in range(3):
        run.epoch(per_epoch=per_epoch)
        assert run.loader.progress == pytest.approx((epoch + 1) / 3)
    assert run.loader.batch_size > BATCH and not caplog.text
    assert run.scheduler.last_epoch == total


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("make", [one_cycle, cosine, partial])
def test_as_many_steps_as_an_epoch_has_batches_stepped_by_the_epoch(make, epochs, caplog):
    """T_max=len(loader), by mistake or because the run has so many epochs. The batch is held until that is clear."""
    run = Run(make, epochs * STEPS)
    run.epoch(per_epoch=True)
    assert run.loader.progress == pytest.approx(1 / (epochs * STEPS))
    assert {record["reason"] for record in run.loader.history.records} == {"start", "length of the run not known"}
    assert caplog.text.count("Give epochs=") == 1
    run.epoch(per_epoch=True)
    assert run.loader.batch_size > BATCH
    assert len(caplog.records) == 1


def test_a_scheduler_that_is_never_stepped_holds_the_batch_and_is_named_once(caplog):
    run = Run(cosine, 3 * STEPS)
    for _ in range(3):
        run.epoch(every=10**9)
    assert run.loader.batch_size == BATCH
    assert caplog.text.count("has not been stepped") == 1 and len(caplog.records) == 1
    assert run.loader.history.records[-1]["doubt"] == "length of the run not known"


@pytest.mark.parametrize("total", [STEPS // 2, STEPS + 10])
def test_what_may_be_the_run_or_a_cycle_of_it_holds_the_batch(total, caplog):
    """T_max may be a part of the run, or all of it: `for step in range(T_max)`, with an iterator that begins again."""
    run = Run(cosine, total)
    while run.batches < total:
        run.epoch(samples=total * BATCH)
    assert run.loader.progress is None and run.loader.batch_size == BATCH
    assert run.scheduler.last_epoch == total and run.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
    assert run.loader.history.records[-1]["reason"] == "length of the run not known"
    assert len(caplog.records) == 1 and "epochs=" in caplog.text


@pytest.mark.parametrize("total", [STEPS // 2, STEPS + 10])
def test_cycles_of_a_run_whose_length_is_said_let_it_grow(total, caplog):
    run = Run(cosine, total, epochs=2)
    for _ in range(2):
        run.epoch()
    assert run.loader.batch_size > BATCH and run.scheduler.last_epoch == 2 * STEPS and not caplog.text


def test_a_run_that_was_held_for_it_stays_so(caplog):
    run = Run(cosine, STEPS + 10)
    run.epoch()
    resumed = Run(cosine, STEPS + 10)
    resumed.loader.load_state_dict(run.loader.state_dict())
    resumed.epoch()
    assert resumed.loader.batch_size == BATCH and len(caplog.records) == 1


def test_a_run_that_goes_on_after_its_schedule_is_one_of_unknown_length(caplog):
    """CosineAnnealingLR(T_max=len(loader)) at each batch, for three epochs: down, up and down again."""
    run = Run(cosine, STEPS)
    run.epoch()
    assert run.loader.progress == pytest.approx(1)
    run.epoch()
    assert run.loader.progress is None
    run.epoch()
    assert run.scheduler.last_epoch == 3 * STEPS
    assert caplog.text.count("goes on after") == 1 and len(caplog.records) == 1


@pytest.mark.parametrize("times", [2, 3])
def test_several_calls_a_batch(times, caplog):
    run = Run(one_cycle, 3 * times * STEPS)
    for epoch in range(3):
        for _ in run.loader:
            for _ in range(times):
                run.optimizer.step()
                run.scheduler.step()
        assert run.loader.progress == pytest.approx((epoch + 1) / 3)
    assert run.scheduler.last_epoch == 3 * times * STEPS and not caplog.text


def test_looks_into_the_loader_before_the_run_are_no_epochs_without_a_call(caplog):
    run = Run(cosine, 3 * STEPS)
    for _ in range(5):
        next(iter(run.loader))
    run.epoch()
    assert not caplog.text and run.loader.batch_size > BATCH


def test_epochs_of_a_number_of_batches_take_more_samples_than_planned(caplog):
    """As with a limit of batches an epoch: nothing raises, and it is said."""
    run = Run(one_cycle, 60)
    for _ in range(3):
        for batch, _ in zip(run.loader, range(20), strict=False):
            loss_of(run.model, batch).backward()
            run.optimizer.step()
            run.scheduler.step()
    assert run.scheduler.last_epoch == 60
    assert "come to its end" in caplog.text


@pytest.mark.parametrize("make", [partial, one_cycle])
@pytest.mark.parametrize("total", [STEPS + 8, 3 * STEPS // 2, 2 * STEPS + 20])
def test_a_loop_that_ends_after_a_number_of_steps_as_transformers_scripts_do(make, total, caplog):
    """Larger batches are fewer: the loop goes on to an epoch's end. The schedule stays at its own, and it is said."""

    def trained(over) -> Run:
        run = Run(make, total)
        for _ in range(-(-total // STEPS)):
            for batch in run.loader:
                loss_of(run.model, batch).backward()
                run.optimizer.step()
                run.optimizer.zero_grad()
                run.scheduler.step()
                run.seen, run.batches = run.seen + len(batch[2]), run.batches + 1
                if over(run):
                    break
        assert run.loader.batch_size > BATCH
        assert run.scheduler.last_epoch == total
        return run

    by_count = trained(lambda run: run.batches >= total)
    assert by_count.seen == -(-total // STEPS) * N
    assert caplog.text.count("come to its end") == 1 and "let it end when loader.progress is 1" in caplog.text
    caplog.clear()
    by_progress = trained(lambda run: run.loader.progress == 1)
    assert total * BATCH <= by_progress.seen < total * BATCH + by_progress.loader.batch_size
    assert not caplog.text


@pytest.mark.parametrize(("total", "n"), [(3 * STEPS, 3), (4, 4), (2 * STEPS + 5, 3), (STEPS // 2, 1)])
def test_epochs_of_the_loader_say_which_reading_is_meant(total, n, caplog):
    run = Run(one_cycle, total)
    assert next(run.loader.epochs(n)) == 0
    assert run.loader.progress == 0 and not caplog.text


def test_epochs_of_the_loader_that_fit_no_reading_are_refused():
    run = Run(one_cycle, 3 * STEPS)
    with pytest.raises(ValueError, match="epochs=4"):
        run.loader.epochs(4)


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize(
    ("total", "number"),
    [
        (2 * STEPS, lambda epoch, i, updates: updates),
        (2, lambda epoch, i, updates: epoch + i / STEPS),
        (2 * 100, lambda epoch, i, updates: 100 * (epoch + i / STEPS)),
    ],
    ids=["updates", "epochs", "hundredths"],
)
def test_explicit_epochs_settle_it_too(total, number, caplog):
    run = Run(cosine, total)
    updates = 0
    for epoch in range(2):
        for i, _ in enumerate(run.loader):
            run.optimizer.step()
            run.scheduler.step(number(epoch, i, updates))
            updates += 1
        if total != 200:
            assert run.loader.progress == pytest.approx((epoch + 1) / 2)
    held = total == 200  # which is no number of batches, and of epochs neither
    assert (run.loader.batch_size > BATCH) != held and len(caplog.records) == held
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-4)


def test_what_the_calls_have_settled_is_saved(caplog):
    run = Run(one_cycle, 40)
    run.epoch(samples=320)
    state, resumed = run.loader.state_dict(), Run(one_cycle, 40)
    resumed.loader.load_state_dict(state)
    assert resumed.loader.progress == run.loader.progress == pytest.approx(0.5)
    assert not caplog.text

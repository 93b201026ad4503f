"""Passes over the loader that train nothing, beside those that do, as `len(list(loader))` for a mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import SubsetRandomSampler

from adaptbs import AdaptiveDataLoader
from tests.integration.training import Numbered, Streamed

N, BATCH, EPOCHS = 512, 16, 4
GROWING = {"target": lambda noise, size, progress: BATCH if progress < 0.5 else 4 * BATCH, "decide_every": 1e-6}


class Loop:
    """A loop whose schedule moves with each batch."""

    def __init__(self, **arguments) -> None:
        self.model, self.steps, self.rates = nn.Linear(8, 1), [], []
        self.optimizer = SGD(self.model.parameters(), 0.01)
        self.scheduler = OneCycleLR(self.optimizer, 0.01, total_steps=EPOCHS * N // BATCH)
        made = {
            "dataset": Numbered(N),
            "scheduler": self.scheduler,
            "overhead": 0,
            "step_time": (1e-3, 1e-6),
            **GROWING,
        }
        self.loader = AdaptiveDataLoader(
            batch_size=BATCH, model=self.model, optimizer=self.optimizer, **made | arguments
        )  # fmt: skip

    def train(self) -> None:
        for x, y, _ in self.loader:
            self.optimizer.zero_grad()
            nn.functional.mse_loss(self.model(x), y).backward()
            self.optimizer.step()
            self.steps.append(len(x))
            self.rates.append(self.optimizer.param_groups[0]["lr"])
            self.scheduler.step()


def run(look: Callable[[Loop], object], epochs: Callable[[AdaptiveDataLoader], Iterable[int]]) -> Loop:
    loop = Loop()
    for _ in epochs(loop.loader):
        loop.train()
        look(loop)
    return loop


WAYS = {"epochs(n)": lambda loader: loader.epochs(EPOCHS), "range(n)": lambda loader: range(EPOCHS)}
LOOKS = {
    "a count": lambda loop: len(list(loop.loader)),
    "an accuracy": lambda loop: [loop.model(x) for x, _, _ in loop.loader],
    "two": lambda loop: (list(loop.loader), list(loop.loader)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("look", LOOKS)
def test_a_look_at_the_data_after_each_epoch_changes_nothing(look, way, caplog):
    """It had taken a share of the run, and the schedule went to its end in half of the epochs."""
    looked, plain = run(LOOKS[look], WAYS[way]), run(lambda _: None, WAYS[way])
    assert looked.steps == plain.steps and max(plain.steps) == 4 * BATCH
    assert looked.rates == plain.rates
    assert looked.scheduler.last_epoch == plain.scheduler.last_epoch
    said = [record.getMessage() for record in caplog.records]
    assert sum("is no part of the run" in text for text in said) == 1
    assert not any("goes on after" in text for text in said), "the look after the last epoch trains nothing"
    over = [text for text in said if text.startswith("the run is over")]
    assert len(said) == 1 + len(over) and len(over) <= (way == "epochs(n)")


@pytest.mark.parametrize("off", [{"overhead": 0}, {"max_batch_size": BATCH}])
def test_with_growth_off_nothing_is_said_of_passes_without_gradients(off, caplog):
    """As for the statistics of BatchNorm after an average of weights (`update_bn`)."""
    model = nn.Linear(8, 1)
    loader = AdaptiveDataLoader(
        Numbered(N),
        BATCH,
        model=model,
        optimizer=SGD(model.parameters(), 0.01),
        epochs=1,
        step_time=(1e-3, 1e-6),
        **off,
    )
    with torch.no_grad():
        assert sum(len(x) for x, _, _ in loader) == N
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_it_is_not_timed_as_quick_steps():
    loop = Loop()
    timed, clock = [], loop.loader.training_run.controller._budget.clock
    step, clock.step = clock.step, lambda size: (timed.append(size), step(size))
    for _ in loop.loader.epochs(EPOCHS):
        loop.train()
        list(loop.loader)
    assert timed == loop.steps


def test_an_epoch_in_which_another_model_has_its_turn_is_one(caplog):
    loop, trained = Loop(), []
    for epoch in loop.loader.epochs(EPOCHS):
        before = len(loop.steps)
        if epoch % 2:
            for x, _, _ in loop.loader:
                len(x)  # or the other model's step
        else:
            loop.train()
            trained.append(sum(loop.steps[before:]))
    assert trained[0] == N and trained[1] <= 2 * N
    assert loop.loader.progress == 1 and "is the whole of an epoch" in caplog.text


def test_a_look_after_a_resumed_epoch_is_no_part_of_the_run():
    saved, resumed = Loop(), Loop()
    saved.train()
    resumed.loader.load_state_dict(saved.loader.state_dict())
    for loop in (saved, resumed):
        list(loop.loader)
        assert loop.loader.progress == 1 / EPOCHS


def an_epoch(loop: Loop, batches: float = math.inf) -> list[int]:
    """Train on an epoch, or save a state in it after so many batches; the indices of those."""
    seen: list[int] = []
    for i, (x, y, index) in enumerate(loop.loader, 1):
        loop.optimizer.zero_grad()
        nn.functional.mse_loss(loop.model(x), y).backward()
        loop.optimizer.step()
        seen += index.tolist()
        if i == batches:
            loop.state = loop.loader.state_dict()
            break
    return seen


@pytest.mark.parametrize("saves_after", [False, True])
@pytest.mark.parametrize("kind", ["map", "workers", "stream", "sampler"])
@pytest.mark.parametrize("looks", [1, 3])
def test_a_look_after_a_resume_leaves_the_rest_of_the_epoch(kind, looks, saves_after):
    """It had taken the place of the rest, and a whole pass more was delivered."""
    data = Numbered(N)
    sampler = {"sampler": SubsetRandomSampler(range(N)) if kind == "sampler" else None, "shuffle": kind == "map"}
    arguments = {
        "dataset": Streamed(data) if kind == "stream" else data, "scheduler": None, "epochs": EPOCHS,
        **(sampler if kind != "stream" else {}), **({"num_workers": 1} if kind == "workers" else {}),
    }  # fmt: skip
    stopped, resumed = Loop(**arguments), Loop(**arguments)
    seen = an_epoch(stopped, 20)
    resumed.loader.load_state_dict(stopped.state)
    for _ in range(looks):
        next(iter(resumed.loader))
    if saves_after:
        state, resumed = resumed.loader.state_dict(), Loop(**arguments)
        resumed.loader.load_state_dict(state)
    assert sorted(seen + an_epoch(resumed)) == list(range(N))
    progress = resumed.loader.training_run.controller.progress_tracker
    assert (progress.samples, progress.epoch) == (N, 1)


@pytest.mark.parametrize("kind", ["map", "workers", "stream"])
@pytest.mark.parametrize("number", [1, 2, 15])  # the last goes on into another pass
def test_a_look_between_two_epochs_leaves_the_pass_that_goes_on(kind, number):
    """Its batches were lost to the pass, and the last one of a pass made an epoch of the look."""
    grown = {"target": lambda noise, size, progress: BATCH + BATCH // 2, "overhead": 0.02}  # 1.5 passes a share
    data = Numbered(N)
    arguments = {
        "dataset": Streamed(data) if kind == "stream" else data, "scheduler": None, "epochs": EPOCHS,
        "shuffle": None if kind == "stream" else True, "num_workers": int(kind == "workers"), **grown,
    }  # fmt: skip
    loop, seen, within = Loop(**arguments), [], 0
    for _ in loop.loader.epochs(EPOCHS):
        within += len(seen) % N > 0
        for _ in zip(range(number), loop.loader if seen else (), strict=False):
            pass
        seen += an_epoch(loop)
    passes = [seen[i : i + N] for i in range(0, len(seen), N)]
    assert within and len(passes) > EPOCHS
    assert all(len(set(each)) == len(each) for each in passes), "each sample once a pass"
    assert loop.loader.training_run.controller.progress_tracker.samples == len(seen)


def test_a_run_resumed_at_the_very_end_of_an_epoch_goes_on_with_the_next():
    stopped, resumed = Loop(scheduler=None, epochs=EPOCHS), Loop(scheduler=None, epochs=EPOCHS)
    an_epoch(stopped)
    an_epoch(stopped, N // BATCH)
    resumed.loader.load_state_dict(stopped.state)
    assert an_epoch(resumed) == []
    assert resumed.loader.training_run.controller.progress_tracker.epoch == 2
    assert len(an_epoch(resumed)) == N


@pytest.mark.parametrize("kind", ["map", "stream"])
def test_so_does_one_saved_after_the_empty_rest_of_that_epoch(kind):
    """An epoch after it had been empty, too."""
    data = Numbered(N)
    arguments = {"dataset": Streamed(data) if kind == "stream" else data, "scheduler": None, "epochs": EPOCHS}
    loop = Loop(**arguments)
    an_epoch(loop, N // BATCH)
    samples = []
    for _ in range(3):
        loop, state = Loop(**arguments), loop.state
        loop.loader.load_state_dict(state)
        samples.append(len(an_epoch(loop)))
        loop.state = loop.loader.state_dict()
    assert samples == [0, N, N]


@pytest.mark.parametrize("closes", ["by rebinding", "at once"])
def test_an_iterator_that_has_looked_is_dropped_after_a_state_was_loaded(closes):
    """It had put the run back to where it was before the look."""
    stopped, resumed = Loop(scheduler=None, epochs=EPOCHS), Loop(scheduler=None, epochs=EPOCHS)
    seen = an_epoch(stopped, 20)
    batches = iter(resumed.loader)
    next(batches)
    resumed.loader.load_state_dict(stopped.state)
    if closes == "at once":
        del batches
    else:
        batches = iter(resumed.loader)
    assert sorted(seen + an_epoch(resumed)) == list(range(N))
    progress = resumed.loader.training_run.controller.progress_tracker
    assert (progress.samples, progress.epoch) == (N, 1)


@pytest.mark.parametrize("ahead", [1, 2, 3])
@pytest.mark.parametrize("left", [1, 2, 5])
def test_a_loop_that_fetches_ahead_trains_on_a_short_rest_once(ahead, left):
    """The iteration is at its end before the loop works on the first of its batches."""
    stopped, resumed = Loop(scheduler=None, epochs=EPOCHS), Loop(scheduler=None, epochs=EPOCHS)
    seen = an_epoch(stopped, N // BATCH - left)
    resumed.loader.load_state_dict(stopped.state)

    def epoch() -> list[int]:
        trained, batches = [], iter(resumed.loader)
        waiting = list(islice(batches, ahead))
        while waiting:
            waiting += islice(batches, 1)
            x, y, index = waiting.pop(0)
            nn.functional.mse_loss(resumed.model(x), y).backward()
            resumed.optimizer.step()
            trained += index.tolist()
        return trained

    assert sorted(seen + epoch()) == list(range(N))
    assert sorted(epoch()) == list(range(N))
    assert resumed.loader.training_run.controller.progress_tracker.epoch == 2

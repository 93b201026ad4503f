"""A loop that accumulates the gradients of several batches to a step."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from tests.integration.training import FORCED, Numbered, adaptive, loss_of, network

K = 4


def trained(loader, model, optimizer, scheduler=None, epochs: int = 1):
    """(samples of each batch, learning rate) of every step."""
    steps, sizes = [], []
    watch = optimizer.register_step_pre_hook(lambda *_: steps.append((tuple(sizes), optimizer.param_groups[0]["lr"])))
    for _ in range(epochs):
        for i, batch in enumerate(loader):
            (loss_of(model, batch) / K).backward()
            sizes.append(len(batch[2]))
            if (i + 1) % K == 0:
                optimizer.step()
                optimizer.zero_grad()
                sizes.clear()
                if scheduler is not None:
                    scheduler.step()
    watch.remove()
    return steps


def parts(n: int = 1024, **arguments):
    model = network()
    optimizer = SGD(model.parameters(), 0.01)
    return model, optimizer, adaptive(Numbered(n), model, optimizer, 8, accumulation_steps=K, epochs=1, **arguments)


@pytest.mark.parametrize("workers", [0, 2])
def test_all_batches_of_a_step_have_one_size_and_its_learning_rate_follows_their_sum(workers):
    wanted = iter([32] * 4 + [64] * 4 + [128] * 99)
    model, optimizer, loader = parts(
        num_workers=workers, target=lambda noise, size, progress: next(wanted), lr_scaling="linear", **FORCED
    )
    steps = trained(loader, model, optimizer)
    assert all(len(set(sizes)) == 1 for sizes, _ in steps)
    assert {sum(sizes) for sizes, _ in steps[:-1]} == {32, 64, 128}
    for sizes, lr in steps[:-1]:
        assert lr == pytest.approx(0.01 * sum(sizes) / 32)
    assert sum(sum(sizes) for sizes, _ in steps) == 1024, "what is left of an epoch is cut into a whole step"
    assert steps[-1][1] == 0.04, "and keeps its learning rate, as an epoch's last batch does"


def test_sizes_are_told_of_a_batch_and_of_a_step():
    model, optimizer, loader = parts(target=lambda *_: 64, max_batch_size=256, overhead=0, decide_every=0.25)
    assert (loader.batch_size, loader.global_batch_size, len(loader)) == (8, 32, 128)
    steps = trained(loader, model, optimizer)
    delivered = sum(len(sizes) for sizes, _ in steps)
    assert (loader.batch_size, loader.global_batch_size, len(loader)) == (16, 64, delivered)
    decisions = loader.history.decisions()
    assert (decisions["batch_size"][-1], decisions["global_batch_size"][-1]) == (16, 64)


def test_the_users_limit_is_of_a_batch_as_it_is_delivered():
    _, _, loader = parts(target=lambda *_: 10**6, max_batch_size=20, overhead=0, decide_every=0.1)
    assert max(len(batch[2]) for batch in loader) == 20
    assert loader.global_batch_size == 80


def test_a_step_is_made_of_equal_parts_whatever_is_wanted():
    model, optimizer, loader = parts(target=lambda *_: 63, max_batch_size=256, overhead=0, decide_every=0.1)
    trained(loader, model, optimizer)
    assert (loader.batch_size, loader.global_batch_size) == (15, 60)


def test_a_schedule_stepped_with_the_optimizer_ends_where_it_would_have_ended():
    model = network()
    optimizer = SGD(model.parameters(), 0.01)
    scheduler = OneCycleLR(optimizer, 0.01, total_steps=2 * 1024 // 8 // K)
    wanted = iter([32] * 20 + [64] * 4 + [128] * 99)
    loader = adaptive(
        Numbered(1024), model, optimizer, 8, accumulation_steps=K, scheduler=scheduler, epochs=None,
        target=lambda *_: next(wanted), **FORCED,
    )  # fmt: skip
    trained(loader, model, optimizer, scheduler, epochs=2)
    assert scheduler.last_epoch == scheduler.total_steps
    assert loader.history.records[-1]["progress"] == 1, "the run's length is known from the scheduler"


def test_it_grows_by_what_it_measures_and_a_step_is_measured_once():
    model, optimizer, loader = parts(8192, overhead=0.5, step_time=(4e-3, 1e-6))
    model[3].p = 0.0
    optimizer.param_groups[0]["lr"] = 0.0  # so that the noise scale stays
    steps = trained(loader, model, optimizer)
    assert loader.global_batch_size > 32
    assert 8 < loader.history.to_dict()["event"].count("measurement") < len(steps)


@pytest.mark.parametrize("stop", [1, 6, 31, 32])
def test_saved_inside_of_a_step_it_goes_on_inside_of_it(stop):
    """The gradients so far are the user's to save."""

    def run():
        wanted = iter([32] * 2 + [64] * 3 + [128] * 99)
        return parts(target=lambda *_: next(wanted), **FORCED)

    def delivered(loader, model, stop: int | None = None):
        seen = []
        for batch in loader:
            loss_of(model, batch).backward()
            seen.append((batch[2].tolist(), loader.lr_factor))
            if len(seen) == stop:
                break
        return seen

    torch.manual_seed(0)
    model, _, loader = run()
    whole, states = [], []
    for batch in loader:
        loss_of(model, batch).backward()
        whole.append((batch[2].tolist(), loader.lr_factor))
        states.append(loader.state_dict())
    model, _, resumed = parts(target=lambda noise, size, progress: sizes.pop(0), **FORCED)
    asked = len(states[stop - 1]["controller"]["history"]) - 1  # decisions made before
    sizes = ([32] * 2 + [64] * 3 + [128] * 99)[asked:]
    resumed.load_state_dict(states[stop - 1])
    assert delivered(resumed, model) == whole[stop:]


def test_what_cannot_be_is_refused():
    for wrong, error in ((0, ValueError), (2.5, TypeError)):
        model = network()
        with pytest.raises(error, match=f"accumulation_steps={wrong}"):
            adaptive(Numbered(64), model, SGD(model.parameters(), 0.01), 8, accumulation_steps=wrong)


def test_saved_after_an_epoch_that_ends_within_a_step_and_gone_on_with_measures_the_same_steps():
    """The step that an epoch leaves unfinished may reach into the next, so that one is not measured."""

    def begun():
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 1)
        optimizer = SGD(model.parameters(), 0.01)
        loader = adaptive(
            Numbered(8 * (5 * K + 1)), model, optimizer, 8, accumulation_steps=K, epochs=6, overhead=0.3,
            step_time=(1e-3, 1e-6), max_batch_size=8,
        )  # fmt: skip
        return loader, model, optimizer

    def measured(loader):
        loader.state_dict()  # reads what has been measured
        return [record["samples"] for record in loader.history if record["event"] == "measurement"]

    unbroken, stopped, resumed = begun(), begun(), begun()
    trained(*unbroken, epochs=6)
    trained(*stopped, epochs=3)
    assert not stopped[0].training_run.tracker.current.ends_step
    for part, saved in zip(resumed, stopped, strict=True):
        part.load_state_dict(saved.state_dict())
    trained(*resumed, epochs=3)
    assert measured(resumed[0]) == measured(unbroken[0])

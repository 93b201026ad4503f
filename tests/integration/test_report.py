"""What loader and callback say of a run when they are printed, and their summaries."""

from __future__ import annotations

import re

import pytest
import torch

from adaptbs import AdaptiveDataLoader
from adaptbs.fastai import AdaptiveBatchSize
from adaptbs.run.controller import Controller
from adaptbs.timing import Spent
from tests.integration.fastai.learners import make_learner
from tests.integration.training import FORCED, Numbered, adaptive, doubling, network, train

QUICK = {"step_time": (1.0, 0.0), "overhead": 0.2, "decide_every": 0.1}


def loader_of(**arguments):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    return adaptive(Numbered(), model, optimizer, **arguments), model, optimizer


def test_a_loader_says_where_its_run_stands():
    loader, model, optimizer = loader_of(**QUICK)
    assert repr(loader) == (
        "AdaptiveDataLoader(batch size 16; noise scale not known yet; the start of the run; 0 % of the run done; "
        "overhead not timed yet)"
    )
    train(model, optimizer, loader, 2)
    shown = re.fullmatch(
        r"AdaptiveDataLoader\(batch size ([\d,]+); noise scale (.*?); .*; 100 % of the run done; "
        r"overhead (?:so far [\d.]+ %|too small to tell)\)", str(loader),
    )  # fmt: skip
    assert shown is not None
    assert shown.groups() == (f"{loader.batch_size:,}", str(loader.noise_scale))


def test_where_nothing_is_measured_it_says_that():
    """And not that it waits for measurements."""
    loader, model, optimizer = loader_of(overhead=0)
    train(model, optimizer, loader, 2)
    stands = "100 % of the run done; nothing is measured (overhead=0))"
    assert repr(loader) == f"AdaptiveDataLoader(batch size 16; {stands}"
    loader, model, optimizer = loader_of(target=doubling(), **FORCED)
    train(model, optimizer, loader, 2)
    assert repr(loader).endswith(f"; at the upper limit, max_batch_size; {stands}")


def test_an_overhead_that_is_lost_in_the_steps_own_times_is_no_number_below_0(monkeypatch):
    loader, model, optimizer = loader_of(**QUICK)
    train(model, optimizer, loader, 1)
    monkeypatch.setattr(Controller, "overhead_spent", Spent(-0.3, -0.07))
    assert "overhead too small to tell" in str(loader)
    assert "Measuring and deciding took too little to tell." in str(loader.summary())


def test_the_callback_says_where_its_run_stands():
    callback = AdaptiveBatchSize(**QUICK)
    assert repr(callback) == "AdaptiveBatchSize(no run yet)"
    with pytest.raises(RuntimeError, match=r"summary\(\): there has been no run yet.*train first"):
        callback.summary()
    make_learner().fit(4, cbs=callback)
    assert repr(callback).startswith(f"AdaptiveBatchSize(batch size {callback.batch_size:,}; noise scale ")
    assert callback.summary().samples == callback.training_run.controller.progress_tracker.samples


def test_printing_neither_counts_as_reading_the_progress_nor_changes_anything():
    loader, model, optimizer = loader_of(**QUICK)
    train(model, optimizer, loader, 1)
    before = repr(loader.state_dict())
    repr(loader), repr(loader.summary())
    assert repr(loader.state_dict()) == before


def test_a_loader_that_was_refused_can_be_printed():
    assert repr(AdaptiveDataLoader.__new__(AdaptiveDataLoader)) == "AdaptiveDataLoader(no run yet)"


def test_a_summary_tells_what_changed_and_the_time_saved():
    loader, model, optimizer = loader_of(target=doubling(), step_time=(1.0, 0.0), **FORCED)
    train(model, optimizer, loader, 2)
    summary = loader.summary()
    assert [change.after for change in summary.changes] == [32, 64, 128, 256]
    assert summary.samples == 2000
    # With seconds that do not depend on the size, the time saved is the steps saved.
    assert summary.fixed_seconds == 125.0 and 0 < summary.seconds < 125.0
    assert "as target= asked" in repr(summary) and "of the time saved" in repr(summary)


@pytest.mark.parametrize(("batch_size", "settings", "told"), [
    (32, {}, True), (16, {}, False), (32, {"max_batch_size": 64}, False), (32, {"overhead": 0}, False),
])  # fmt: skip
def test_a_batch_that_has_no_room_to_grow_is_told_so(batch_size, settings, told):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    settings = {"epochs": 1, "loss_func": torch.nn.functional.mse_loss, **settings}
    loader = AdaptiveDataLoader(Numbered(256), batch_size, model=model, optimizer=optimizer, **settings)
    for x, y, _ in loader:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    assert ("at most an eighth of the 256 samples" in repr(loader.summary())) == told


def test_accumulated_steps_are_told_apart_from_batches():
    loader, *_ = loader_of(accumulation_steps=4, **QUICK)
    assert repr(loader).startswith("AdaptiveDataLoader(batch size 16, 64 a step; ")

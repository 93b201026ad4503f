"""Epochs that are shares of a fit's progress: n asked are n shown, validated, saved and counted."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from fastai.basics import Callback
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation, ShortEpochCallback
from fastai.learner import CancelFitException

from adaptbs.fastai import AdaptiveBatchSize
from tests.integration.fastai.learners import body_and_head, make_learner

BS, ROWS, GROWN = 8, 203, 40


class Seen(Callback):
    """Notes the indices of each epoch's batches, and how often the fit was validated."""

    order = 70

    def __init__(self):
        self.epochs, self.valid, self.pct, self.totals = [], 0, [], []

    def before_train(self):
        self.epochs.append([])

    def after_batch(self):
        if self.training:
            self.epochs[-1] += self.yb[-1].tolist()
            self.pct.append(self.learn.pct_train)
            self.totals.append((self.iter + 1, self.n_iter))

    def before_validate(self):
        self.valid += 1

    @property
    def flat(self):
        return [i for epoch in self.epochs for i in epoch]


def callback(**settings):
    settings = {"target": lambda *_: GROWN, "max_batch_size": GROWN} | settings
    return AdaptiveBatchSize(step_time=(1.0, 0.0), overhead=0.5, **settings)


def each_once(seen: list[int], n: int = ROWS) -> bool:
    passes = [seen[begin : begin + n] for begin in range(0, len(seen), n)]
    return all(len(set(one)) == len(one) for one in passes)


@pytest.mark.parametrize("how", [{}, {"num_workers": 1}, {"n": 200}])
def test_each_pass_sees_each_sample_once_over_the_epochs_borders(how):
    learn, seen = make_learner(**{"bs": BS, "n": ROWS} | how), Seen()
    learn.fit_one_cycle(4, 0.01, cbs=[callback(), seen])
    n = how.get("n", ROWS)
    assert len(seen.epochs) == seen.valid == len(learn.recorder.values) == 4
    assert len(seen.flat) > 4 * n
    assert each_once(seen.flat, n)
    assert seen.pct == sorted(seen.pct) and seen.pct[-1] == pytest.approx(1)


def test_the_table_says_how_many_samples_each_epoch_took():
    learn, seen = make_learner(BS, ROWS), Seen()
    learn.fit_one_cycle(3, 0.01, cbs=[callback(), seen])
    place = learn.recorder.metric_names.index("samples") - 1
    assert [row[place] for row in learn.recorder.values] == [len(epoch) for epoch in seen.epochs]


def test_the_number_of_batches_shown_is_right_at_the_last_batch_alone():
    learn, seen = make_learner(BS, ROWS), Seen()
    learn.fit_one_cycle(3, 0.01, cbs=[callback(), seen])
    ends = [i + 1 == len(seen.totals) or seen.totals[i + 1][0] == 1 for i in range(len(seen.totals))]
    assert [batch == total for batch, total in seen.totals] == ends


def test_what_drop_last_drops_is_no_part_of_a_pass():
    learn, seen = make_learner(BS, ROWS, drop_last=True), Seen()
    learn.fit(3, 0.01, cbs=[callback(), seen])
    assert len(seen.epochs) == 3
    assert each_once(seen.flat, ROWS - ROWS % BS)


def test_a_budget_of_epochs_has_passes():
    learn, seen = make_learner(BS, ROWS), Seen()
    learn.fit(3, 0.01, cbs=[callback(budget="epochs"), seen])
    assert [sorted(epoch) for epoch in seen.epochs] == [list(range(ROWS))] * 3


def test_the_best_model_is_saved_after_one_of_the_epochs(tmp_path):
    learn, seen = make_learner(BS, ROWS, path=tmp_path), Seen()
    saver = SaveModelCallback(every_epoch=True, with_opt=True)
    learn.fit_one_cycle(3, 0.01, cbs=[callback(), seen, saver])
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [f"model_{i}.pth" for i in range(3)]
    learn.load("model_1")


def test_early_stopping_after_the_second_epoch_and_another_fit():
    class Second(Callback):
        order = 80

        def after_epoch(self):
            if self.epoch == 1:
                raise CancelFitException

    learn, seen, cb = make_learner(BS, ROWS), Seen(), callback()
    learn.fit_one_cycle(5, 0.01, cbs=[cb, seen, Second()])
    assert len(seen.epochs) == seen.valid == 2
    assert seen.pct[-1] == pytest.approx(0.4, abs=GROWN / (5 * ROWS))
    again = Seen()
    learn.fit_one_cycle(3, 0.01, cbs=[cb, again])
    assert len(again.epochs) == again.valid == 3
    assert each_once(again.flat), "a fit begins with a pass of its own"
    assert again.pct[-1] == pytest.approx(1)


def test_fastais_own_early_stopping():
    learn, seen = make_learner(BS, ROWS), Seen()
    stop = EarlyStoppingCallback(monitor="valid_loss", min_delta=1e9, patience=1)
    learn.fit(6, 1e-3, cbs=[callback(), seen, stop])
    assert len(seen.epochs) == seen.valid == 2


def test_fine_tune_has_its_epochs_in_both_of_its_fits():
    learn, seen = make_learner(BS, ROWS, splitter=body_and_head), Seen()
    learn.fine_tune(3, 0.01, freeze_epochs=2, cbs=[callback(), seen])
    assert len(seen.epochs) == seen.valid == 5
    first, second = list(chain(*seen.epochs[:2])), list(chain(*seen.epochs[2:]))
    assert each_once(first) and each_once(second)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_fit_of_few_epochs(epochs):
    learn, seen = make_learner(BS, ROWS), Seen()
    learn.fit_one_cycle(epochs, 0.01, cbs=[callback(), seen])
    assert len(seen.epochs) == epochs and seen.pct[-1] == pytest.approx(1)


def test_epochs_that_are_broken_off_are_epochs():
    learn, seen = make_learner(BS, ROWS), Seen()
    learn.fit(4, 0.01, cbs=[callback(), seen, ShortEpochCallback(pct=0.3)])
    assert len(seen.epochs) == seen.valid == 4
    assert all(len(epoch) > 0 for epoch in seen.epochs)


def test_a_fit_goes_on_at_an_epoch_from_a_saved_state():
    learn, seen, cb = make_learner(BS, ROWS), Seen(), callback()
    states = []

    class Keep(Callback):
        order = 80

        def after_epoch(self):
            states.append(cb.state_dict())
            if self.epoch == 1:
                raise CancelFitException

    learn.fit_one_cycle(4, 0.01, cbs=[cb, seen, Keep()])
    again, resumed = Seen(), callback()
    resumed.load_state_dict(states[-1])
    learn.fit_one_cycle(4, 0.01, cbs=[resumed, again], start_epoch=2)
    assert [len(epoch) > 0 for epoch in again.epochs] == [True, True]
    assert again.pct[0] == pytest.approx(0.5, abs=2 * GROWN / (4 * ROWS)) and again.pct[-1] == pytest.approx(1)
    assert resumed.progress == 1
    over = Seen()
    finished = callback()
    finished.load_state_dict(resumed.state_dict())
    learn.fit_one_cycle(4, 0.01, cbs=[finished, over], start_epoch=2)
    assert over.epochs == [], "the run is over"


def test_an_accumulated_batch_is_one_iteration_over_epochs_borders_too():
    learn, seen = make_learner(BS, ROWS), Seen()
    learn.fit(3, 0.01, cbs=[callback(), seen, GradientAccumulation(2 * BS)])
    assert len(seen.epochs) == seen.valid == 3 and each_once(seen.flat)


def test_a_loader_that_is_exchanged_between_epochs_begins_a_pass():
    learn, seen = make_learner(BS, ROWS), Seen()
    other = make_learner(BS, ROWS).dls

    class Exchange(Callback):
        def after_epoch(self):
            self.learn.dls = other

    learn.fit(2, 0.01, cbs=[callback(), seen, Exchange()])
    assert len(seen.epochs) == 2
    assert all(each_once(epoch) for epoch in seen.epochs)


def test_a_batch_that_stays_at_the_reference_is_fastais_own_fit_to_the_bit():
    weights = []
    for cbs in ([callback(max_batch_size=BS)], []):
        learn = make_learner(BS, ROWS)
        learn.fit_one_cycle(3, 0.01, cbs=cbs)
        weights.append(torch.cat([p.detach().flatten() for p in learn.model.parameters()]))
    assert torch.equal(*weights)

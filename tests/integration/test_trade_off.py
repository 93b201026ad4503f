"""The trade-off of whole runs, and of the finder in fastai."""

from __future__ import annotations

import pytest
from torch.optim import AdamW

from adaptbs.decision.policy import CRITICAL_OF_ADAPTIVE
from adaptbs.fastai import AdaptiveBatchSize
from tests.integration.fastai.learners import make_learner
from tests.integration.training import Numbered, adaptive, network, train

STEP_TIME = (0.004, 1e-5)


def test_of_a_plain_run():
    data, model = Numbered(2000), network()
    optimizer = AdamW(model.parameters(), 1e-3)
    loader = adaptive(data, model, optimizer, 16, step_time=STEP_TIME, overhead=0.5)
    with pytest.raises(RuntimeError, match="no noise scale"):
        loader.trade_off()
    train(model, optimizer, loader, 2)
    found = loader.trade_off()
    estimates = [phi for phi in loader.history.decisions()["noise_scale"] if phi is not None]
    assert min(estimates) <= found.phi <= max(estimates)
    assert (found.base_batch_size, found.step_time) == (16, STEP_TIME)
    assert found.critical == CRITICAL_OF_ADAPTIVE * found.phi, "of AdamW"
    assert found.rows[-1].batch_size <= 2000
    assert found.rows[-1].time.value > found.rows[-1].steps.value
    assert loader.trade_off(base=64).base_batch_size == 64


def test_of_a_fit():
    learn = make_learner(n=1000)
    callback = AdaptiveBatchSize(step_time=STEP_TIME, overhead=0.5)
    with pytest.raises(RuntimeError, match="no noise scale"):
        callback.trade_off()
    learn.fit_one_cycle(2, 1e-2, cbs=callback)
    found = callback.trade_off()
    estimates = [phi for phi in callback.history.decisions()["noise_scale"] if phi is not None]
    assert min(estimates) <= found.phi <= max(estimates)
    assert (found.base_batch_size, found.step_time) == (20, STEP_TIME)
    assert "20 takes" in callback.trade_off().plot().axes[0].get_ylabel()


@pytest.mark.parametrize("lr", [None, 1e-2])
def test_of_the_finder_in_fastai(lr):
    learn = make_learner(n=1000)
    found = learn.bs_find(lr=lr, n_batch=8, show_plot=False)
    assert found.step_time is not None and found.step_time(20) > 0
    table = found.trade_off()
    critical = CRITICAL_OF_ADAPTIVE * found.noise_scale if found.noise_scale else None
    assert table.critical == critical, "of fastai's Adam"
    assert table.base_batch_size == 20
    assert table.step_time == found.step_time
    assert {row.batch_size: row.time for row in table.rows}[20] == (1, 1, 1)

"""Parts of other libraries in a Learner that only look like fastai's: an optimizer of its own, GradientAccumulation."""

from __future__ import annotations

import pytest
import torch
from fastai.basics import Callback, CancelBatchException, Optimizer

from adaptbs.fastai import AdaptiveBatchSize
from tests.integration.fastai.learners import make_learner

OFF = {"overhead": 0}


def stepped_at_once(params, lr=1e-2, **kwargs):
    """An optimizer that steps all parameters at once, and so has no function for each, as fastxtend's has."""

    class AtOnce(Optimizer):
        def step(self, closure=None):
            for p, _, _, hyper in self.all_params(with_grad=True):
                p.data.add_(p.grad, alpha=-hyper["lr"])

    made = AtOnce(params, [], lr=lr)
    made.cbs.append(None)
    return made


class GradientAccumulation(Callback):
    """Not fastai's: it counts batches, where that counts samples to `n_acc`."""

    order, run_valid = 6, False  # as that one

    def __init__(self, batches: int = 3) -> None:
        self.batches, self.made = batches, 0

    def before_step(self) -> None:
        self.made += 1
        if self.made % self.batches:
            raise CancelBatchException


def weights(*callbacks, **learner) -> torch.Tensor:
    learn = make_learner(**learner)
    learn.fit_one_cycle(3, 1e-2, cbs=[make() for make in callbacks])
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


@pytest.mark.parametrize(
    ("callbacks", "learner"),
    [((), {"opt_func": stepped_at_once}), ((GradientAccumulation,), {})],
    ids=["optimizer", "accumulation"],
)
def test_with_growth_off_the_weights_are_stocks(callbacks, learner):
    ours = weights(*callbacks, lambda: AdaptiveBatchSize(**OFF), **learner)
    assert torch.equal(ours, weights(*callbacks, **learner))


def test_such_an_optimizer_is_not_known(caplog):
    learn = make_learner(opt_func=stepped_at_once)
    callback = AdaptiveBatchSize(target="noise_scale", step_time=(4e-3, 1e-6))
    learn.fit_one_cycle(3, 1e-2, cbs=callback)
    assert callback.batch_size == 20
    assert "optimizer AtOnce is not known" in caplog.text


def test_accumulation_that_counts_otherwise_holds_the_batch(caplog):
    learn = make_learner(n=803)
    callback = AdaptiveBatchSize(target="noise_scale", step_time=(4e-3, 1e-6), overhead=0.5, budget="epochs")
    learn.fit_one_cycle(3, 1e-2, cbs=[GradientAccumulation(), callback])
    assert callback.batch_size == 20
    assert "made of the gradients of 3 batches" in caplog.text

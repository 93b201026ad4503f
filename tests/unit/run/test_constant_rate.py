"""Where no schedule brings the learning rate down, SGD's batch stays small."""

import pytest
from fastai.callback.schedule import ParamScheduler, SchedCos
from fastai.optimizer import SGD as FastaiSGD
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import OneCycleLR

from adaptbs import AdaptiveDataLoader
from adaptbs.fastai import AdaptiveBatchSize
from adaptbs.run.rules import RunRules
from adaptbs.run.settings import Settings
from tests.integration.fastai.learners import make_learner
from tests.problems import digits, digits_mlp


def rules(*, adaptive: bool = False, start: int = 64, **settings) -> RunRules:
    made = RunRules(
        Settings(**settings), batch_size=start, epoch_samples=64_000, adaptive=adaptive, batches_per_step=1
    )
    made.expect_no_decay()
    return made


def test_the_batch_of_sgd_is_limited_and_that_of_adam_is_not():
    assert rules().max_batch_size == 256
    assert rules(adaptive=True).max_batch_size == 2048
    assert rules(start=500).max_batch_size == 500
    assert rules(start=500, base_batch_size=64).max_batch_size == 500, "what the run starts with stays"


@pytest.mark.parametrize(
    "said", [{"max_batch_size": 1000}, {"target": lambda *_: 1000}, {"lr_scaling": "none"}, {"lr_scaling": "linear"}]
)
def test_what_the_user_says_of_batch_or_rate_goes_before_it(said):
    assert rules(**said).max_batch_size >= 1000


@pytest.mark.parametrize(("kind", "scheduled", "most"), [(SGD, False, 64), (SGD, True, 224), (Adam, False, 224)])
def test_a_loader_knows_by_its_scheduler(kind, scheduled, most):
    model = digits_mlp()
    optimizer = kind(model.parameters(), lr=0.1)
    scheduler = OneCycleLR(optimizer, 0.1, total_steps=113) if scheduled else None
    loader = AdaptiveDataLoader(
        digits(), 16, shuffle=True, model=model, optimizer=optimizer, loss_func=cross_entropy, scheduler=scheduler,
    )  # fmt: skip
    assert loader.training_run.controller.rules.max_batch_size == most
    loader.close()


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_fit_knows_by_its_schedulers(scheduled):
    learn, callback = make_learner(n=4000, opt_func=FastaiSGD), AdaptiveBatchSize()
    schedule = [ParamScheduler({"lr": SchedCos(1e-2, 0)})] if scheduled else []
    learn.fit(1, 1e-2, cbs=[callback, *schedule])
    limit = callback.training_run.controller.rules.max_batch_size
    assert limit == (500 if scheduled else 4 * learn.dls.bs)

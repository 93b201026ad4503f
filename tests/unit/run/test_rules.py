import math

import pytest

from adaptbs.run.rules import RunRules
from adaptbs.run.settings import Settings


def rules(adaptive: bool = False, **settings) -> RunRules:
    return RunRules(Settings(**settings), batch_size=64, epoch_samples=64_000, adaptive=adaptive, batches_per_step=1)


def test_the_learning_rate_of_sgd_is_raised_to_at_most_twice_its_schedules_peak():
    assert rules().scale(512, None).longest == 2


@pytest.mark.parametrize(
    "settings",
    [{"adaptive": True}, {"lr_scaling": "linear"}, {"lr_scaling": lambda k, _: k}, {"target": lambda *_: 512}],
)
def test_but_not_adams_nor_where_the_user_has_said_what_it_is(settings):
    assert rules(**settings).scale(512, None).longest == math.inf


def test_a_start_beyond_the_base_batch_says_what_rate_is_borne():
    run = rules(base_batch_size=8)  # from 64, eight times the base
    assert run.scale(64, None) == (8, 8, 2 * 8)

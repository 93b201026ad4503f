import numpy as np
import pytest

from adaptbs.checks import check_share, check_size
from adaptbs.run.settings import Settings
from adaptbs.timing.step_time import StepTime


def test_no_argument_is_needed():
    settings = Settings()
    assert (settings.target, settings.lr_scaling, settings.overhead) == ("goodput", "auto", 0.05)
    assert settings.max_batch_size is settings.base_batch_size is settings.step_time is None


def test_functions_are_taken_for_target_and_lr_scaling():
    settings = Settings(target=lambda *_: 8, lr_scaling=lambda k, _: k)
    assert settings.target(None, 8, 0.0) == 8
    assert settings.lr_scaling(2.0, None) == 2


def test_a_step_time_becomes_a_function_of_the_batch():
    step_time = Settings(step_time=[1, 0.5]).step_time
    assert isinstance(step_time, StepTime)
    assert step_time(4) == 3


def test_a_run_may_start_with_the_whole_dataset_and_at_its_maximum():
    Settings(max_batch_size=8).check_start(batch_size=8, samples=8)


def test_a_run_may_not_start_with_more():
    with pytest.raises(ValueError, match=r"batch_size=9 .* 8 samples of the dataset"):
        Settings().check_start(batch_size=9, samples=8)
    with pytest.raises(ValueError, match=r"batch_size=9: .*drop_last=True .*lower batch_size"):
        Settings().check_start(batch_size=9, samples=0)
    with pytest.raises(ValueError, match=r"max_batch_size=7 is below batch_size=8"):
        Settings(max_batch_size=7).check_start(batch_size=8, samples=8)


def test_a_size_is_an_integer_of_any_library():
    check_size("batch_size", 1)
    check_size("batch_size", np.int64(64))


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), (True, TypeError)])
def test_other_sizes_are_refused(value, error):
    with pytest.raises(error, match=f"num_it={value!r}: it must be"):
        check_size("num_it", value)


def test_a_share_lies_between_0_and_1():
    check_share("confidence", 0.5)
    check_share("overhead", 0, or_zero=True)


@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (1, ValueError), (-0.1, ValueError), (float("nan"), ValueError), ("x", TypeError),
     (True, TypeError)],
)  # fmt: skip
def test_other_shares_are_refused(value, error):
    with pytest.raises(error, match=f"confidence={value!r}: it must"):
        check_share("confidence", value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "thirds"}, "source='thirds': it must be one of 'auto', 'halves', 'per_example'"),
        ({"source": lambda: None}, "source="),
        ({"metric": "fisher"}, "metric='fisher': it must be one of 'plain', 'adam'"),
        ({"source": "per_example", "by_group": True}, "are measured by halves"),
    ],
)
def test_how_to_measure_is_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Settings(**arguments)


def test_what_follows_the_batch():
    assert Settings().following == {"lr", "betas", "eps", "weight_decay"}
    assert Settings(lr_scaling="sqrt").following == {"lr"}
    betas = Settings(transfer=["betas"])
    assert (betas.following, betas.lr_scaling) == ({"betas"}, "none")


def test_an_unknown_hyperparameter_is_refused():
    with pytest.raises(ValueError, match="'wd' is not one of 'lr', 'betas', 'eps', 'weight_decay'"):
        Settings(transfer=["wd"])

import pytest
from fastai.learner import Learner

from adaptbs.fastai import AdaptiveBatchSize


def test_before_the_first_fit_nothing_is_known():
    callback = AdaptiveBatchSize()
    assert callback.batch_size is None
    assert callback.noise_scale is None
    assert len(callback.history) == 0


def test_a_learner_has_the_finder():
    assert callable(Learner.bs_find)


@pytest.mark.parametrize(
    "argument", [{"max_batch_size": 0}, {"target": "fastest"}, {"lr_scaling": "cubic"}, {"overhead": 1.5}]
)
def test_arguments_are_checked_as_the_loaders_are(argument):
    with pytest.raises(ValueError, match=next(iter(argument))):
        AdaptiveBatchSize(**argument)

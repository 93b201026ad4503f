import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import nn

from adaptbs.fastai import AdaptiveBatchSize
from adaptbs.fastai.learner import batch_loss
from adaptbs.model import BatchLoss

CALLS = {"loss": 0}


def counting(prediction, target):
    CALLS["loss"] += 1
    return nn.functional.mse_loss(prediction, target)


def test_what_the_loss_counts_in_a_global_variable_stays_as_it_was():
    samples, model = [(torch.randn(2), torch.randn(1)) for _ in range(8)], nn.Linear(2, 1)
    learn = Learner(DataLoaders(DataLoader(samples, bs=4), DataLoader(samples, bs=4)), model, loss_func=counting)
    loss, before = BatchLoss(batch_loss=batch_loss(learn)), dict(CALLS)
    with loss.preserving(model):
        loss(model, ((torch.ones(4, 2),), (torch.ones(4, 1),)))
        assert before != CALLS
    assert before == CALLS


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

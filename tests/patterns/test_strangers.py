"""Two arguments that do not belong together are refused; those that do in a roundabout way are not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adam
from torch.optim import lr_scheduler as schedulers

from tests.patterns.test_wrong_kinds import FACES, Lookahead
from tests.unit.test_errors import Run, refused


def of_another_model(run: Run) -> SGD:
    return SGD(nn.Linear(1, 1).parameters(), 0.1)


def of_a_copy(run: Run) -> SGD:
    return SGD(copy.deepcopy(run.model).parameters(), 0.1)


def of_its_weights_before(run: Run) -> Adam:
    """The model's layer is replaced after the optimizer was made."""
    optimizer = Adam(run.model.parameters(), 0.1)
    run.model.weight, run.model.bias = nn.Parameter(torch.ones(1, 1)), nn.Parameter(torch.zeros(1))
    return optimizer


def of_a_head_alone(run: Run) -> SGD:
    return SGD(nn.Linear(2, 2).parameters(), 0.1)


@FACES
@pytest.mark.parametrize("made", [of_another_model, of_a_copy, of_its_weights_before, of_a_head_alone])
def test_an_optimizer_of_other_parameters(face, made):
    run = Run()
    optimizer = made(run)
    with refused(run, ValueError, "optimizer=", "model=", "none of the Linear's parameters", "model.parameters()"):
        face(run, optimizer=optimizer)


class Parallel(nn.Module):
    """Holds the model as DistributedDataParallel does."""

    def __init__(self, module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        return self.module(*inputs)


@FACES
@pytest.mark.parametrize("wrap", [Parallel, lambda model: torch.compile(model, backend="eager"), nn.DataParallel])
def test_a_wrapped_model_has_the_same_parameters(face, wrap):
    run = Run()
    face(run, model=wrap(run.model), optimizer=run.optimizer, loss_func=mse_loss)


@FACES
def test_a_head_of_the_loss_may_be_trained_beside_the_model(face):
    run = Run()
    head = nn.Linear(1, 1)
    optimizer = SGD([{"params": head.parameters()}, {"params": run.model.parameters()}], 0.1)
    face(run, optimizer=optimizer, loss_func=lambda prediction, target: mse_loss(head(prediction), target))


@FACES
def test_a_part_of_the_model_may_be_trained(face):
    run = Run()
    face(run, optimizer=SGD([run.model.weight], 0.1))


def test_a_scheduler_of_another_optimizer():
    run = Run()
    strangers = [
        schedulers.StepLR(of_another_model(run), 10),
        schedulers.OneCycleLR(Adam(run.model.parameters(), 0.1), 0.1, total_steps=16),
        schedulers.ReduceLROnPlateau(of_another_model(run)),
    ]
    other = Adam(run.model.parameters(), 0.1)
    linear, steps = schedulers.LinearLR(other), schedulers.StepLR(other, 10)
    strangers += [schedulers.SequentialLR(other, [linear, steps], [4]), schedulers.ChainedScheduler([linear, steps])]
    for scheduler in strangers:
        with refused(run, ValueError, "scheduler=", "optimizer=", type(scheduler).__name__, "another optimizer"):
            run.loader(scheduler=scheduler)


def test_a_scheduler_of_the_optimizer_that_wraps_it_and_of_several_parts():
    run = Run()
    wrapper = Lookahead(SGD(run.model.parameters(), 0.1))
    run.loader(optimizer=wrapper.base, scheduler=schedulers.CosineAnnealingLR(wrapper, 16))
    optimizer = SGD(run.model.parameters(), 0.1)
    linear, steps = schedulers.LinearLR(optimizer), schedulers.StepLR(optimizer, 10)
    run.loader(optimizer=optimizer, scheduler=schedulers.SequentialLR(optimizer, [linear, steps], [4]), epochs=1)
    optimizer.load_state_dict(optimizer.state_dict())
    run.loader(optimizer=optimizer, scheduler=steps, epochs=1)

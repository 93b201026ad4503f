"""Loops that are not as they should be: they work, or an error says what to do."""

from __future__ import annotations

import copy
import gc
import io
import multiprocessing
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adam, AdamW
from torch.optim import lr_scheduler as schedulers

from adaptbs import AdaptiveDataLoader
from tests.integration.training import FORCED, Numbered, adaptive, doubling, loss_of, network, stock

MEASURING = {"overhead": 0.9, "step_time": (1.0, 0.0), "max_batch_size": 16}
ALL = 200


class Setup:
    """A model, an optimizer and a loader that grows, or measures; and the learning rates inside each step."""

    def __init__(self, kind: Any = SGD, n: int = ALL, grow: bool = True, **arguments: Any) -> None:
        self.model = network()
        self.optimizer = kind(self.model.parameters(), 0.01)
        chosen = {"target": doubling(), **FORCED} if grow else MEASURING
        if "scheduler" in arguments:
            arguments["scheduler"] = arguments["scheduler"](self.optimizer)
        self.loader = adaptive(Numbered(n), self.model, self.optimizer, **chosen | arguments)
        self.inside = watched(self.optimizer)

    def step(self, batch: Any) -> None:
        self.optimizer.zero_grad()
        loss_of(self.model, batch).backward()
        self.optimizer.step()


def watched(optimizer) -> list[list[float]]:
    inside: list[list[float]] = []
    optimizer.register_step_pre_hook(lambda *_: inside.append([g["lr"] for g in optimizer.param_groups]))
    return inside


def samples(batches) -> list[int]:
    return sorted(i for batch in batches for i in batch[2].tolist())


# Optimizers.


def test_of_two_optimizers_neither_is_changed_as_the_batch_is_held(caplog):
    data, model = Numbered(ALL), network()
    given, other = SGD(model[:1].parameters(), 0.01), SGD(model[1:].parameters(), 0.01)
    loader = adaptive(data, model, given, target=doubling(8), **FORCED)
    inside, others = watched(given), watched(other)
    for batch in loader:
        loss_of(model, batch).backward()
        given.step(), other.step()
    assert {lr for (lr,) in inside} == {lr for (lr,) in others} == {0.01} and loader.batch_size == 16
    assert "a second optimizer" in caplog.text


@pytest.mark.parametrize("times", [0, 1, 2])
def test_an_optimizer_stepped_any_number_of_times_a_batch(times):
    setup, batches = Setup(AdamW), 0
    for batch in setup.loader:
        loss_of(setup.model, batch).backward()
        for _ in range(times):
            setup.optimizer.step()
        batches += 1
    assert setup.loader.batch_size >= 64
    assert len(setup.inside) == times * batches
    assert setup.optimizer.param_groups[0]["lr"] == 0.01
    setup.loader._session.step_hook.scaler.count_steps(wait=True)
    counted = setup.loader.state_dict()["hyperparameters"]["accumulated"]
    assert [steps for steps, *_ in counted] == ([times * batches] if times else [])


def test_torchs_warning_of_a_scheduler_stepped_too_early_still_comes():
    made: list[Any] = []
    setup = Setup(scheduler=lambda o: made.append(schedulers.StepLR(o, 1)) or made[0])
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        for batch in setup.loader:
            made[0].step()
            setup.step(batch)


@pytest.mark.parametrize("grow", [False, True])
@pytest.mark.parametrize("views", [{}, {"metric": "adam"}, {"by_group": True}], ids=str)
def test_a_parameter_group_added_in_the_middle_of_a_run_follows_like_the_others(grow, views):
    setup, head = Setup(AdamW, 400, grow, **views), nn.Linear(8, 1)
    for i, batch in enumerate(setup.loader):
        if i == 8:
            setup.optimizer.add_param_group({"params": head.parameters(), "lr": 0.02})
        setup.optimizer.zero_grad()
        (loss_of(setup.model, batch) + head(batch[0]).square().mean()).backward()
        setup.optimizer.step()
    assert [group["lr"] for group in setup.optimizer.param_groups] == [0.01, 0.02]
    assert {len(lrs) for lrs in setup.inside} == {1, 2}
    if grow:
        assert setup.inside[-1][1] > 0.05, "as the batch is more than eight times as large"
    else:
        assert setup.loader.noise_scale is not None


def test_an_optimizer_whose_state_is_cleared_at_each_step():
    setup = Setup(AdamW)
    for batch in setup.loader:
        setup.step(batch)
        setup.optimizer.state.clear()
    assert setup.optimizer.param_groups[0]["lr"] == 0.01


# Models.


@pytest.mark.parametrize("views", [{}, {"metric": "adam"}, {"by_group": True}], ids=str)
def test_parameters_frozen_in_the_middle_of_a_run_are_left_out_of_what_is_measured(views):
    setup = Setup(AdamW, 400, grow=False, **views)
    for i, batch in enumerate(setup.loader):
        if i == 8:
            setup.model[0].requires_grad_(False)
        setup.step(batch)
    assert setup.loader.history.to_dict()["event"].count("measurement") > 8


def test_a_model_frozen_altogether_is_no_longer_measured():
    setup = Setup(SGD, 400, grow=False)
    seen = 0
    for i, batch in enumerate(setup.loader):
        if i == 8:
            setup.model.requires_grad_(False)
        seen += len(batch[2])
    assert seen == 400


def test_a_model_in_another_precision_whose_loss_sees_to_it_is_measured():
    def loss(model, batch):
        return mse_loss(model(batch[0].double()), batch[1].double())

    setup = Setup(SGD, grow=False, batch_loss=loss)
    setup.model.to(torch.float64)
    for batch in setup.loader:
        loss(setup.model, batch).backward()
        setup.optimizer.step()
    assert setup.loader.noise_scale.measurements > 4


def test_a_batch_that_the_loss_cannot_take_as_it_is_delivered_is_held_and_said_to_be_that(caplog):
    setup = Setup(SGD, grow=False, source="halves")
    setup.model.to(torch.float64)
    assert sum(1 for _ in setup.loader) == len(setup.loader)
    (said,) = [record.getMessage() for record in caplog.records if "is held" in record.getMessage()]
    assert "batch_loss" in said and "overhead=0" in said and "float32 [" in said


def test_a_model_moved_to_another_device_before_the_run_is_timed_there():
    setup = Setup()
    setup.model.to("meta")
    next(iter(setup.loader))
    assert setup.loader.training_run.controller.device.type == "meta"


# Loaders.


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_within_a_loop_gets_all_samples_of_both(workers):
    setup, outer = Setup(n=64, num_workers=workers), []
    for batch in setup.loader:
        outer += batch[2].tolist()
        assert samples(setup.loader) == list(range(64))
    assert sorted(outer) == list(range(64))


def test_two_loops_side_by_side_get_all_samples_each():
    setup = Setup()
    first, second = zip(*zip(setup.loader, setup.loader, strict=False), strict=True)
    assert samples(first) == samples(second) == list(range(ALL))


def test_a_loop_within_a_loop_over_persistent_workers_is_refused():
    setup = Setup(n=64, num_workers=2, persistent_workers=True)
    with pytest.raises(RuntimeError, match="persistent workers"):
        for _ in setup.loader:
            samples(setup.loader)


def deliver_all(loader, sent) -> None:
    sent.send(samples(loader))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_delivers_and_its_parent_does_not_notice():
    setup = Setup()
    received, sent = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=deliver_all, args=(setup.loader, sent))
    child.start()
    assert received.poll(30)
    assert received.recv() == list(range(ALL))
    child.join(30)
    assert setup.loader.progress == 0 and setup.loader.batch_size == 16
    assert samples(setup.loader) == list(range(ALL))


def plain_loss(pred, target):
    return mse_loss(pred, target)


@pytest.mark.parametrize("how", [copy.deepcopy, pickle.dumps])
def test_a_loader_cannot_be_copied_and_says_what_to_do(how):
    """A copy would grow its batch and no optimizer would follow."""
    model, data = network(), torch.utils.data.TensorDataset(torch.randn(64, 8), torch.randn(64, 1))
    optimizer = SGD(model.parameters(), 0.01)
    loader = AdaptiveDataLoader(data, 4, model=model, optimizer=optimizer, loss_func=plain_loss, epochs=1)
    with pytest.raises(TypeError, match=r"(?s)cannot be copied or pickled.*state_dict\(\)"):
        how(loader)
    assert len(optimizer._optimizer_step_pre_hooks) == 1


@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_a_copy_of_the_optimizer_is_a_stock_one(how):
    setup = Setup(AdamW)
    for batch in setup.loader:
        setup.step(batch)
    twin = how(setup.optimizer)
    inside = watched(twin)
    for parameter in (p for group in twin.param_groups for p in group["params"]):
        parameter.grad = torch.ones_like(parameter)
    twin.step()
    assert setup.loader.lr_factor > 1 and inside == [[0.01]]
    assert setup.optimizer._optimizer_step_pre_hooks and not twin.__dict__.keys() & {"_adaptbs_scaled_step"}


@pytest.mark.parametrize("name", ["StepLR", "OneCycleLR", "CosineAnnealingLR", "ExponentialLR"])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_a_copy_of_the_driven_scheduler_is_a_stock_one_and_does_not_take_its_steps(how, name):
    made: list[Any] = []
    make = {
        "StepLR": lambda o: schedulers.StepLR(o, 1, 0.9),
        "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.02, total_steps=26),
        "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 26),
        "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    }[name]
    setup = Setup(scheduler=lambda o: made.append(make(o)) or made[0])
    (scheduler,) = made
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the copy's optimizer has made no step
        for batch in setup.loader:
            setup.step(batch)
            twin = how(scheduler)
            at = twin.last_epoch
            twin.step()
            assert twin.last_epoch == at + 1 and type(twin) is getattr(schedulers, name)
            scheduler.step()
    assert scheduler.last_epoch == len(stock(Numbered(ALL))), "it should have made the steps of the fixed run"


def test_the_state_of_a_driven_scheduler_goes_through_a_file():
    made: list[Any] = []
    Setup(scheduler=lambda o: made.append(schedulers.StepLR(o, 1, 0.9)) or made[0])
    saved = io.BytesIO()
    torch.save(made[0].state_dict(), saved)
    saved.seek(0)
    made[0].load_state_dict(torch.load(saved, weights_only=True))


def test_a_loader_that_is_deleted_leaves_the_optimizer_as_it_was_found():
    setup = Setup(Adam)
    for batch in setup.loader:
        setup.step(batch)
    optimizer = setup.optimizer
    del setup
    gc.collect()
    inside = watched(optimizer)
    optimizer.step()
    assert inside == [[0.01]]


def test_a_closed_loader_does_not_grow_behind_the_optimizers_back():
    setup = Setup()
    setup.loader.close()
    with pytest.raises(RuntimeError, match=r"close\(\)"):
        next(iter(setup.loader))


def test_closing_twice_is_closing():
    setup = Setup()
    setup.loader.close()
    setup.loader.close()
    assert len(setup.optimizer._optimizer_step_pre_hooks) == 1, "the test's own"


# What a loop leaves adaptbs out of.


def test_a_scheduler_that_was_not_given_is_noticed(caplog):
    setup = Setup()
    scheduler = schedulers.OneCycleLR(setup.optimizer, 0.01, total_steps=ALL)
    for batch in setup.loader:
        setup.step(batch)
        scheduler.step()
    assert caplog.text.count("give it as scheduler=") == 1


class Wrapped(SGD):
    """As SAM is often written: its own two methods, and another optimizer that takes the step."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr)
        self.base_optimizer = SGD(self.param_groups, lr)
        self.param_groups = self.base_optimizer.param_groups


def test_an_optimizer_whose_step_is_never_called_is_noticed(caplog):
    setup = Setup(Wrapped, n=40 * ALL)
    for batch in setup.loader:
        loss_of(setup.model, batch).backward()
        setup.optimizer.base_optimizer.step()
    assert caplog.text.count("is never called") == 1

"""Between decisions nothing waits for the device, on the double of CUDA in tests/helpers/cuda.py."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import Adam, OptimWrapper
from torch import nn
from torch.optim import SGD, AdamW
from torch.utils.data import TensorDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.fastai import AdaptiveBatchSize
from adaptbs.ranks import Ranks
from adaptbs.run.controller import Controller
from tests.helpers.cuda import FakeCuda
from tests.helpers.waits import ELSEWHERE

mse_loss = nn.functional.mse_loss


class Work(Callback):
    """A step's work on the device."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def before_batch(self) -> None:
        self.cuda.queue(5e-3)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda p: AdamW(p, 1e-3),
    "AdamW, fused": lambda p: AdamW(p, 1e-3, fused=True),
    "AdamW, capturable": lambda p: AdamW(p, 1e-3, capturable=True),
    "AdamW, lr as a tensor": lambda p: AdamW(p, torch.tensor(1e-3, device="cuda"), capturable=True, foreach=False),
    "SGD with momentum": lambda p: SGD(p, 1e-2, momentum=0.9),
}


def waits_outside_of_readings(cuda: FakeCuda, monkeypatch) -> list[tuple[str, str]]:
    """What is waited for from the second reading on, other than in a reading or a decision."""
    outside: list[tuple[str, str]] = []
    seen = {"readings": 0, "from": 0, "depth": 0}

    def watched(method):
        def reading(self, *args, **arguments):
            seen["readings"] += 1
            if seen["readings"] > 3 and not seen["depth"]:  # the first measurements look at what kind of loss this is
                outside.extend(cuda.waits.found[seen["from"] :])
            seen["depth"] += 1
            result = method(self, *args, **arguments)
            seen["depth"] -= 1
            seen["from"] = len(cuda.waits.found)
            return result

        return reading

    for name in ("_take_in", "_decide"):
        monkeypatch.setattr(Controller, name, watched(getattr(Controller, name)))
    return outside


@pytest.mark.parametrize("source", ["halves", "in_step"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("by_step", [False, True], ids=["own steps", "loader.step"])
def test_a_loop_is_not_held_up(source, optimizer, by_step, monkeypatch):
    with FakeCuda() as cuda:
        outside = waits_outside_of_readings(cuda, monkeypatch)
        layers = [nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 1)]
        model = cuda.place(nn.Sequential(*layers))
        data = TensorDataset(torch.randn(800, 8), torch.randn(800, 1))
        made = OPTIMIZERS[optimizer](model.parameters())
        loader = AdaptiveDataLoader(
            data, 16, shuffle=True, model=model, optimizer=made, loss_func=nn.MSELoss(), epochs=1, source=source,
            overhead=0.3, max_batch_size=16, decide_every=0.2, budget="epochs",
        )  # fmt: skip
        for batch in loader:
            x, y = (t.to("cuda", non_blocking=True) for t in batch)
            cuda.queue(5e-3)  # beside which a measurement costs little
            if by_step:
                loader.step((x, y))
                continue
            mse_loss(model(x), y).backward()
            made.step()
            made.zero_grad()
        events = loader.history.to_dict()["event"]
    assert events.count("measurement") >= 8 and events.count("decision") >= 4
    assert outside == []


@pytest.mark.parametrize(
    "arguments",
    [{"metric": "adam"}, {"by_group": True}, {"accumulation_steps": 2}, {"exceed_memory": True}],
    ids=lambda arguments: next(iter(arguments)),
)
def test_nor_by_what_is_asked_for_besides(arguments, monkeypatch):
    with FakeCuda() as cuda:
        outside = waits_outside_of_readings(cuda, monkeypatch)
        model = cuda.place(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1)))
        optimizer = AdamW(model.parameters(), 1e-3)
        data = TensorDataset(torch.randn(1600, 8), torch.randn(1600, 1))
        loader = AdaptiveDataLoader(
            data, 16, shuffle=True, model=model, optimizer=optimizer, loss_func=nn.MSELoss(), epochs=1, overhead=0.3,
            max_batch_size=16, decide_every=0.2, budget="epochs", **arguments,
        )  # fmt: skip
        for batch in loader:
            cuda.queue(5e-3)
            loader.step(tuple(t.to("cuda", non_blocking=True) for t in batch))
    assert loader.history.to_dict()["event"].count("measurement") >= 8
    assert outside == []


class Agreeing(Ranks):
    """The first of two ranks that see the same, without another process."""

    __slots__ = ()

    def agree(self, value):
        return value

    def gather(self, numbers):
        return [list(numbers)] * self.world_size

    def mean(self, numbers):
        return numbers.mul_(self.world_size) / self.world_size


@pytest.mark.parametrize("averages", [True, False], ids=["DDP", "own averaging"])
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("to_none", [True, False])
def test_nor_by_several_ranks(averages, passes, to_none, monkeypatch):
    """Measured by each rank's gradient against the average. The exchange itself is not simulated."""
    monkeypatch.setattr(Ranks, "from_arguments", lambda *_: Agreeing(0, 2, True))
    with FakeCuda() as cuda:
        outside = waits_outside_of_readings(cuda, monkeypatch)
        model = cuda.place(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)))
        optimizer = AdamW(model.parameters(), 1e-3)
        data = TensorDataset(torch.randn(3200, 8), torch.randn(3200, 1))
        loader = AdaptiveDataLoader(
            data, 16, shuffle=True, model=model, optimizer=optimizer, epochs=1, overhead=0.3, max_batch_size=16,
            decide_every=0.2, budget="epochs", accumulation_steps=passes,
        )  # fmt: skip
        gradients = loader._session.meter.gradients
        gradients._averages, gradients._copies = averages, passes > 1 or not averages
        for i, (x, y) in enumerate(loader, 1):
            cuda.queue(5e-3)
            mse_loss(model(x.to("cuda", non_blocking=True)), y.to("cuda", non_blocking=True)).backward()
            if i % passes == 0:
                optimizer.step()
                optimizer.zero_grad(set_to_none=to_none)
    assert loader.history.to_dict()["event"].count("measurement") >= 8
    assert outside == []


def test_one_value_that_is_read_at_each_step_would_be_seen(monkeypatch):
    with FakeCuda() as cuda:
        outside = waits_outside_of_readings(cuda, monkeypatch)
        model = cuda.place(nn.Linear(8, 1))
        optimizer = SGD(model.parameters(), 1e-2)
        data = TensorDataset(torch.randn(800, 8), torch.randn(800, 1))
        loader = AdaptiveDataLoader(
            data, 16, model=model, optimizer=optimizer, loss_func=nn.MSELoss(), epochs=1, max_batch_size=16,
            decide_every=0.2, budget="epochs",
        )  # fmt: skip
        for x, y in loader:
            loss = mse_loss(model(x.to("cuda", non_blocking=True)), y.to("cuda", non_blocking=True))
            loss.backward()
            loss.item()
            optimizer.step()
            optimizer.zero_grad()
    assert len(outside) > 20 and {what for what, _ in outside} == {"_local_scalar_dense.default"}


# fastai sets each group's learning rate to a number, so there is none as a tensor.
OF_FASTAI: dict[str, Callable[..., Any]] = {
    "fastai's Adam": Adam,
    **{name: partial(OptimWrapper, opt=opt) for name, opt in {
        "AdamW, fused": partial(AdamW, fused=True),
        "AdamW, capturable": partial(AdamW, capturable=True),
    }.items()},
}  # fmt: skip


@pytest.mark.parametrize("source", ["halves", "in_step"])
@pytest.mark.parametrize("optimizer", OF_FASTAI)
def test_a_learner_is_not_held_up(source, optimizer, monkeypatch):
    with FakeCuda() as cuda:
        outside = waits_outside_of_readings(cuda, monkeypatch)
        model = cuda.place(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)))
        data = TensorDataset(torch.randn(800, 8), torch.randn(800, 1))
        dls = DataLoaders(DataLoader(data, bs=16, shuffle=True), DataLoader(data, bs=400))
        dls.device = torch.device("cuda")
        learn = Learner(dls, model, loss_func=nn.MSELoss(), opt_func=OF_FASTAI[optimizer], cbs=Work(cuda))
        callback = AdaptiveBatchSize(source=source, overhead=0.3, max_batch_size=16, decide_every=0.2, budget="epochs")
        with learn.no_logging():
            learn.fit(1, 1e-3, cbs=[callback])
    assert callback.history.to_dict()["event"].count("measurement") >= 8
    # fastai's Recorder reads the loss at each batch, and its loader waits for each batch's copy. What kind
    # of loss this is, is looked at a few times in a run.
    expected = (ELSEWHERE, "to_device(batch", "gradients/coupling.py")
    assert [line for _, line in outside if not any(known in line for known in expected)] == []


def test_a_loader_made_before_the_model_is_moved_is_timed_on_the_device():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = SGD(model.parameters(), 1e-2)
    data = TensorDataset(torch.randn(1600, 8), torch.randn(1600, 1))
    loader = AdaptiveDataLoader(
        data, 16, model=model, optimizer=optimizer, loss_func=nn.MSELoss(), epochs=1, max_batch_size=16,
        source="halves", budget="epochs",
    )  # fmt: skip
    with FakeCuda() as cuda:
        cuda.place(model)
        for x, y in loader:
            cuda.queue(0.5)
            mse_loss(model(x.to("cuda", non_blocking=True)), y.to("cuda", non_blocking=True)).backward()
            optimizer.step()
            optimizer.zero_grad()
        loader.training_run.controller.state_dict()  # reads the clock
        median = loader.training_run.controller._budget.step_times.median(16)
    assert cuda.events > 100 and median == pytest.approx(0.5, rel=0.01)

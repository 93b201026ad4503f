"""Between decisions nothing waits for the device, on the double of CUDA in tests/helpers/cuda.py."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import Adam, OptimWrapper
from torch import nn
from torch.distributed import ReduceOp
from torch.optim import SGD, AdamW
from torch.utils.data import TensorDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.fastai import AdaptiveBatchSize
from adaptbs.global_batch import GlobalBatch
from adaptbs.gradients.accumulated import AccumulatedGradients
from adaptbs.gradients.fsdp import ShardedGradients, _Watched
from adaptbs.ranks import Ranks
from tests.helpers.cuda import FakeCuda
from tests.helpers.readings import waits_outside_of_readings
from tests.helpers.waits import ELSEWHERE

mse_loss = nn.functional.mse_loss


class Work(Callback):
    """A step's work on the device."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def before_batch(self) -> None:
        self.cuda.queue(5e-3)


@pytest.mark.parametrize(
    "arguments",
    [{"metric": "adam"}, {"by_group": True}, {"accumulation_steps": 2}, {"exceed_memory": True}],
    ids=lambda arguments: next(iter(arguments)),
)
def test_nor_by_what_is_asked_for_besides(arguments, monkeypatch):
    with FakeCuda() as cuda:
        outside = waits_outside_of_readings(cuda.waits, monkeypatch)
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

    gather_any = gather

    def mean(self, numbers):
        return numbers.mul_(self.world_size) / self.world_size


@pytest.mark.parametrize("averages", [True, False], ids=["DDP", "own averaging"])
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("to_none", [True, False])
def test_nor_by_several_ranks(averages, passes, to_none, monkeypatch):
    """Measured by each rank's gradient against the average. The exchange itself is not simulated."""
    monkeypatch.setattr(Ranks, "from_arguments", lambda *_: Agreeing(0, 2, True))
    with FakeCuda() as cuda:
        outside = waits_outside_of_readings(cuda.waits, monkeypatch)
        model = cuda.place(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)))
        optimizer = AdamW(model.parameters(), 1e-3)
        data = TensorDataset(torch.randn(3200, 8), torch.randn(3200, 1))
        grows = {"target": lambda noise, size, progress: 32 * passes * (1 + (progress > 0.5)), "max_batch_size": 64}
        loader = AdaptiveDataLoader(
            data, 16, shuffle=True, model=model, optimizer=optimizer, epochs=1, overhead=0.3, decide_every=0.1,
            budget="epochs", accumulation_steps=passes, **grows,
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
    assert set(loader.history.decisions()["batch_size"]) == {16, 32}
    assert outside == []


class Group:
    """What ShardedGradients asks of FSDP's group of parameters, whose reduction copies its input."""

    gradient_divide_factor = 2.0

    @staticmethod
    def _reduce_scatter_comm(output_tensor, input_tensor, group, op, async_op=False) -> None:
        output_tensor.copy_(input_tensor[: len(output_tensor)])

    @staticmethod
    def size() -> int:
        return 2


@pytest.mark.parametrize("op", [ReduceOp.AVG, ReduceOp.SUM, None])
def test_nor_by_what_fully_shard_reduces(op):
    with FakeCuda() as cuda:
        model, group = cuda.place(nn.Linear(8, 1)), Group()
        watch = ShardedGradients(model, Agreeing(0, 2, True))
        watch.arm(lambda: True)
        watch._spread, watched = 2, _Watched(group, watch._saw)
        whole = torch.randn(16).to("cuda", non_blocking=True)
        for _ in range(2):
            watched(torch.zeros(8, device="cuda"), whole, group, op)
        norms = watch.norms(32, passes=2)
        assert cuda.holds(norms.small) and cuda.holds(norms.large)
    assert cuda.waits.found == []
    assert norms.small.isfinite()


def test_nor_by_a_global_batch_of_accumulated_gradients(monkeypatch):
    with FakeCuda() as cuda:
        outside = waits_outside_of_readings(cuda.waits, monkeypatch, GlobalBatch, ("_decide",))
        model = cuda.place(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)))
        optimizer = AdamW(model.parameters(), 1e-3, capturable=True)
        batch = GlobalBatch(32, micro_batch_size=16, total=8000, max_batch_size=128, decide_every=0.05)
        watch = AccumulatedGradients(model)
        while batch.seen < batch.total:
            for _ in range(batch.accumulation_steps):
                x, y = (torch.randn(16, n).to("cuda", non_blocking=True) for n in (8, 1))
                (mse_loss(model(x), 3 * y) / batch.accumulation_steps).backward()
            norms = watch.norms(16)
            optimizer.step()
            optimizer.zero_grad()
            batch.step(norms)
        watch.close()
    assert len(set(batch.history.to_dict()["global_batch_size"])) > 1
    assert outside == []


def test_one_value_that_is_read_at_each_step_would_be_seen(monkeypatch):
    with FakeCuda() as cuda:
        outside = waits_outside_of_readings(cuda.waits, monkeypatch)
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


class Mixed(MixedPrecision):
    """fastai's own, which would find no device here to train in half precision on."""

    def before_fit(self) -> None:
        self.autocast = torch.autocast("cpu", torch.bfloat16)  # the double's values are a CPU's
        self.learn.scaler, self.scales = torch.amp.GradScaler("cuda"), []


BESIDE: dict[str, tuple[Callable[[], Any], str]] = {  # callbacks, and the source of norms
    "alone, halves": (lambda: [], "halves"),
    "alone": (lambda: [], "in_step"),
    "half precision": (lambda: [Mixed()], "in_step"),
    "clipped": (lambda: [GradientClip(0.1)], "in_step"),
    "accumulated": (lambda: [GradientAccumulation(32)], "halves"),
}
# fastai's Recorder reads the loss at each batch, its loader waits for each batch's copy, and GradScaler's step reads
# whether anything has overflowed.
OF_OTHERS = (ELSEWHERE, "to_device(batch", "learn._step", "return step()")
# The kind of loss is read once in a run. Steps counted on the device are read when counting begins.
OF_A_RUN = ("gradients/coupling.py", "hyperparameters/bias_correction.py")


@pytest.mark.parametrize(
    ("optimizer", "beside"),
    [*((name, beside) for name in OF_FASTAI for beside in ("alone", "alone, halves")),
     *(("fastai's Adam", beside) for beside in ("half precision", "clipped", "accumulated"))],
)  # fmt: skip
def test_a_learner_is_not_held_up(optimizer, beside, monkeypatch):
    callbacks, source = BESIDE[beside]
    with FakeCuda() as cuda:
        outside = waits_outside_of_readings(cuda.waits, monkeypatch)
        model = cuda.place(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)))
        data = TensorDataset(torch.randn(1200, 8), torch.randn(1200, 1))
        dls = DataLoaders(DataLoader(data, bs=16, shuffle=True), DataLoader(data, bs=400))
        dls.device = torch.device("cuda")
        learn = Learner(dls, model, loss_func=nn.MSELoss(), opt_func=OF_FASTAI[optimizer], cbs=Work(cuda))
        callback = AdaptiveBatchSize(
            source=source, overhead=0.3, max_batch_size=32, decide_every=0.1, budget="epochs",
            target=lambda noise, size, progress: 16 if progress < 0.5 else 32,
        )  # fmt: skip
        with learn.no_logging():
            learn.fit(1, 1e-3, cbs=[*callbacks(), callback])
    assert callback.history.to_dict()["event"].count("measurement") >= 8
    assert set(callback.history.decisions()["batch_size"]) == {16, 32}
    ours = [line for _, line in outside if not any(known in line for known in OF_OTHERS)]
    assert [line for line in ours if not any(known in line for known in OF_A_RUN)] == []
    assert all(sum(known in line for line in ours) <= 1 for known in OF_A_RUN)


def test_a_penalty_that_is_nothing_at_first_is_found_when_measurements_are_read(monkeypatch, caplog):
    with FakeCuda() as cuda:
        outside = waits_outside_of_readings(cuda.waits, monkeypatch)
        model = cuda.place(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)))
        begun = [p.detach().clone() for p in model.parameters()]
        optimizer = SGD(model.parameters(), 0.05)
        data = TensorDataset(torch.randn(1600, 8), torch.randn(1600, 1))
        loader = AdaptiveDataLoader(data, 16, model=model, optimizer=optimizer, epochs=2, overhead=0.3)
        for _ in range(2):
            for batch in loader:
                cuda.queue(5e-3)
                x, y = (t.to("cuda", non_blocking=True) for t in batch)
                optimizer.zero_grad()
                distance = sum((p - p0).square().sum() for p, p0 in zip(model.parameters(), begun, strict=True))
                (mse_loss(model(x), y) + distance).backward()
                optimizer.step()
    assert caplog.text.count("not the sum") == len(caplog.records) == 1
    assert [line for _, line in outside if ELSEWHERE not in line] == []


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

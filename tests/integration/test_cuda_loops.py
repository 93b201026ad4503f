"""Loops as people write them are not held up between decisions, on the double of CUDA, nor when the batch has grown."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

import pytest
import torch
from lion_pytorch import Lion
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.gradients.in_step import InStep
from adaptbs.types import NoiseScale
from tests.helpers.cuda import FakeCuda
from tests.helpers.readings import waits_outside_of_readings
from tests.helpers.waits import ELSEWHERE

mse_loss = nn.functional.mse_loss
EPOCHS = 2
WORK = 0.02  # seconds of a step on the device


def on_device(number: float) -> torch.Tensor:
    return torch.full((), number, device="cuda")


class NormalizedMomentum(torch.optim.Optimizer):
    """As Muon, it takes a step of a size of its own. Nothing is known of it."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                average.mul_(0.9).add_(p.grad)
                p.sub_(group["lr"] * average / average.norm())


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD with momentum": lambda p: SGD(p, 1e-2, momentum=0.9),
    "Adam": lambda p: Adam(p, 1e-3),
    "AdamW, fused": lambda p: AdamW(p, 1e-3, fused=True),
    "AdamW, capturable": lambda p: AdamW(p, 1e-3, capturable=True),
    "AdamW, a group for each parameter": lambda p: AdamW([{"params": [q]} for q in p], 1e-3, fused=True),
    "AdamW, lr as a tensor": lambda p: AdamW(p, on_device(1e-3), capturable=True, foreach=False),
    "AdamW, betas as tensors": lambda p: AdamW(
        p, 1e-3, betas=(on_device(0.9), on_device(0.999)), capturable=True, foreach=False
    ),
    "Lion": lambda p: Lion(p, 1e-4),
    "not known": NormalizedMomentum,
}
COUNTED = "hyperparameters/bias_correction.py"  # reads steps that an optimizer counts on the device, and betas there


def adaptive_loader(model, optimizer, **arguments) -> AdaptiveDataLoader:
    """A loader whose batch doubles in the middle of the run, so that hyperparameters follow it."""
    data = TensorDataset(torch.randn(640, 8), torch.randn(640, 1))
    given: dict[str, Any] = {
        "loss_func": nn.MSELoss(), "epochs": EPOCHS, "overhead": 0.3, "max_batch_size": 32, "decide_every": 0.1,
        "target": lambda noise, size, progress: 16 if progress < 0.3 else 32, "budget": "epochs",
    }  # fmt: skip
    return AdaptiveDataLoader(data, 16, shuffle=True, model=model, optimizer=optimizer, **{**given, **arguments})


def batches(cuda: FakeCuda, loader: AdaptiveDataLoader):
    """The batches of a run on the device, with a step's work beside which a measurement costs little."""
    for _ in loader.epochs(EPOCHS):
        for batch in loader:
            cuda.queue(5e-3)
            yield tuple(t.to("cuda", non_blocking=True) for t in batch)


def sizes(loader: AdaptiveDataLoader) -> set[int]:
    return set(loader.history.decisions()["batch_size"])


BY_STEP = ("AdamW, fused", "SGD with momentum")


@pytest.mark.parametrize("source", ["halves", "in_step"])
@pytest.mark.parametrize(
    ("optimizer", "by_step"), [*((name, False) for name in OPTIMIZERS), *((name, True) for name in BY_STEP)]
)
def test_a_loop_is_not_held_up(source, optimizer, by_step, monkeypatch):
    with FakeCuda() as cuda:
        outside = waits_outside_of_readings(cuda.waits, monkeypatch)
        layers = [nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 1)]
        model = cuda.place(nn.Sequential(*layers))
        made = OPTIMIZERS[optimizer](model.parameters())
        loader = adaptive_loader(model, made, source=source)
        for x, y in batches(cuda, loader):
            if by_step:
                loader.step((x, y))
                continue
            mse_loss(model(x), y).backward()
            made.step()
            made.zero_grad()
        events = loader.history.to_dict()["event"]
    assert events.count("measurement") >= 8 and events.count("decision") >= 4
    assert sizes(loader) == ({16} if optimizer == "not known" else {16, 32})
    if "betas" in optimizer:  # torch's own step reads such betas
        outside = [found for found in outside if found[1] != ELSEWHERE]
    # Steps that are counted on the device are read, for all groups at once, where betas begin to follow the batch, and
    # when an epoch begins; betas on the device once.
    counted = [line for _, line in outside if COUNTED in line]
    assert len(counted) <= EPOCHS * ("AdamW," in optimizer) + 2 * ("betas" in optimizer)
    assert [line for _, line in outside if COUNTED not in line] == []


class Loop:
    """A training step as people write it. `arguments` are of the loader."""

    arguments: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.model: nn.Module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
        self.steps = 0

    def begin(self, optimizer) -> dict[str, Any]:
        """Further arguments of the loader."""
        self.optimizer = optimizer
        return {}

    def step(self, x, y) -> None:
        mse_loss(self.model(x), y).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Clips(Loop):
    def step(self, x, y) -> None:
        mse_loss(self.model(x), y).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
        self.optimizer.step()
        self.optimizer.zero_grad()


class SetsToZero(Loop):
    def step(self, x, y) -> None:
        mse_loss(self.model(x), y).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)


class Scales(Loop):
    """With a GradScaler, whose step itself reads whether anything has overflowed."""

    def begin(self, optimizer) -> dict[str, Any]:
        self.scaler = torch.amp.GradScaler("cuda")
        return super().begin(optimizer)

    def step(self, x, y) -> None:
        with torch.autocast("cpu", torch.bfloat16):  # the double's values are a CPU's
            loss = mse_loss(self.model(x).float(), y)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()


class Accumulates(Loop):
    arguments: ClassVar[dict[str, Any]] = {"accumulation_steps": 2, "max_batch_size": 64}

    def step(self, x, y) -> None:
        (mse_loss(self.model(x), y) / 2).backward()
        self.steps += 1
        if self.steps % 2 == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()


class Normalizes(Loop):
    """With a BatchNorm, whose momentum follows the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))


class Schedules(Loop):
    """In epochs that are shares of the run's progress, and after a one-cycle schedule."""

    arguments: ClassVar[dict[str, Any]] = {"budget": "progress", "target": "goodput"}

    def begin(self, optimizer) -> dict[str, Any]:
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=EPOCHS * 40)
        return {**super().begin(optimizer), "scheduler": self.scheduler}

    def step(self, x, y) -> None:
        super().step(x, y)
        self.scheduler.step()


class KnowsBefore(Loop):
    """With the noise scale that an earlier run has found."""

    arguments: ClassVar[dict[str, Any]] = {
        "prior": NoiseScale(grad_sq=1.0, trace=100.0, low=80.0, high=120.0, cautious=90.0, measurements=50),
        "target": "goodput",
    }


class Sums(Loop):
    """With a loss that is found to be a sum, which holds the batch."""

    arguments: ClassVar[dict[str, Any]] = {
        "loss_func": None, "batch_loss": lambda model, batch: (model(batch[0]) - batch[1]).square().sum()
    }  # fmt: skip

    def step(self, x, y) -> None:
        (self.model(x) - y).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Checkpoints(Loop):
    def step(self, x, y) -> None:
        mse_loss(checkpoint(self.model, x, use_reentrant=False), y).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


LOOPS = (Clips, SetsToZero, Scales, Accumulates, Normalizes, Schedules, KnowsBefore, Sums, Checkpoints)


@pytest.mark.parametrize("source", ["halves", "auto"])
@pytest.mark.parametrize("kind", LOOPS, ids=lambda kind: kind.__name__)
def test_nor_is_one_that_does_more(kind, source, monkeypatch):
    with FakeCuda() as cuda:
        outside = waits_outside_of_readings(cuda.waits, monkeypatch)
        loop = kind()
        cuda.place(loop.model)
        optimizer = AdamW(loop.model.parameters(), 1e-3)  # whose steps are counted on the host
        further = loop.begin(optimizer)
        loader = adaptive_loader(loop.model, optimizer, source=source, **{**loop.arguments, **further})
        for x, y in batches(cuda, loader):
            loop.step(x, y)
        events = loader.history.to_dict()["event"]
    assert events.count("measurement") >= 8 and events.count("decision") >= 4
    assert [line for _, line in outside if line != ELSEWHERE] == []
    assert kind in (Scales, Clips) or not outside  # in which torch reads or copies itself


@pytest.mark.parametrize(("on_cuda", "tolerance"), [(False, 1e-3), (True, 1e-2)])
def test_gradients_of_a_gpu_may_be_rounded_to_tf32(on_cuda, tolerance, monkeypatch):
    """cuDNN multiplies float32 as TF32, in ways that differ with the algorithm it chooses for a call."""
    asked: list[float] = []

    def is_off(sizes, tolerance):
        asked.append(tolerance)
        return torch.zeros(2, dtype=torch.bool)

    monkeypatch.setattr("adaptbs.gradients.comparisons._is_off", is_off)
    with FakeCuda() if on_cuda else nullcontext() as cuda:
        model, x = nn.Linear(8, 1), torch.randn(16, 8)
        if cuda is not None:
            cuda.place(model)
            x = x.to("cuda", non_blocking=True)
        watch = InStep(model)
        watch.arm(16)
        model(x).sum().backward()
        watch.norms()
        watch.disarm()
    assert asked == [tolerance]


@pytest.mark.parametrize("source", ["halves", "in_step"])
def test_a_model_on_another_device_than_the_current_one_is_timed_and_tried_there(source):
    with FakeCuda(devices=2) as cuda:
        model = cuda.place(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)), 1)
        optimizer = SGD(model.parameters(), 1e-3)
        loader = adaptive_loader(model, optimizer, source=source)
        stream = torch.cuda.current_stream("cuda:1")
        for _ in loader.epochs(EPOCHS):
            for batch in loader:
                cuda.queue(WORK, stream)
                x, y = (t.to("cuda:1", non_blocking=True) for t in batch)
                mse_loss(model(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
        loader.training_run.controller.state_dict()  # reads the clock
        assert loader.training_run.controller._budget.step_times.median(32) == pytest.approx(WORK, rel=0.1)
        assert sizes(loader) == {16, 32} and "measurement" in loader.history.to_dict()["event"]
        assert cuda.allocators[0].allocated_peak == 0 < cuda.allocators[1].allocated_peak
        assert torch.cuda.current_device() == 0

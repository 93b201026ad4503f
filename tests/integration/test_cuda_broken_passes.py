"""Memory that runs out while a step is measured: nothing of the broken pass is held, on the double of CUDA."""

import gc
import logging

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.gradients.in_step import InStep
from adaptbs.memory.device import CudaMemory
from tests.helpers.allocator import MiB
from tests.helpers.cuda import FakeCuda
from tests.helpers.seen import Seen

WIDTH, SAMPLES = 64, 2048
OUT = torch.OutOfMemoryError("CUDA out of memory. (injected)")


class RunsOut(nn.Module):
    """Raises at so many of its calls on large batches, from the `first` on."""

    def __init__(self, times: int = 0, first: int = 0) -> None:
        super().__init__()
        turns = iter([False] * first + [True] * times)  # not attributes, which are as before after a broken pass
        self.runs_out_now = lambda: next(turns, False)

    def forward(self, x):
        if len(x) >= SAMPLES // 2 and self.runs_out_now():
            raise torch.OutOfMemoryError(*OUT.args)
        return x


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.MultiheadAttention(WIDTH, 2, batch_first=True), nn.Linear(WIDTH, 1)

    def forward(self, x):
        x = x[:, None].expand(-1, 4, -1)
        return self.out(self.inner(x, x, x, need_weights=False)[0].mean(1))


class Checkpointed(nn.Module):
    """A layer whose gradient arrives before its inputs are computed anew, which runs out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.runs_out = nn.Linear(WIDTH, 8), nn.Linear(8, 1), RunsOut(times=1, first=1)

    def forward(self, x):
        return checkpoint(lambda x: self.last(self.runs_out(self.first(x))) + 1, x, use_reentrant=False)


def layers() -> nn.Sequential:
    hidden = [part for _ in range(6) for part in (nn.Linear(WIDTH, WIDTH), nn.Tanh())]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, 1))


@pytest.fixture(autouse=True)
def no_collection():
    """A circle of references would hold memory until Python happens to look for circles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("inner", [layers, Attention])
def test_a_forward_pass_that_runs_out_holds_no_inputs(inner):
    with FakeCuda() as cuda:
        model = cuda.place(nn.Sequential(inner(), RunsOut(times=1)))
        x = torch.randn(SAMPLES, WIDTH).to("cuda", non_blocking=True)
        before = cuda.memory.allocated
        watch = InStep(model)
        watch.arm(SAMPLES)
        with pytest.raises(torch.OutOfMemoryError):
            model(x)
        gone = cuda.memory.allocated - before  # pytest.raises has let go of the frames
        del model, watch
    assert gone == 0


def test_a_checkpoint_that_runs_out_when_it_is_run_again_leaves_the_next_pass_measured():
    model, x = Checkpointed(), torch.randn(SAMPLES, WIDTH)
    watch = InStep(model)
    watch.arm(SAMPLES)
    with pytest.raises(torch.OutOfMemoryError):
        model(x).sum().backward()
    model.zero_grad()
    model(x).sum().backward()
    after = watch.norms()
    model.zero_grad()
    watch.arm(SAMPLES)
    model(x).sum().backward()
    right = watch.norms()
    assert after.small == right.small and after.large == right.large


def test_where_a_hook_runs_out_the_backward_pass_frees_as_it_goes(monkeypatch):
    """What the layers were called on is held for the hooks, which have nothing to do any more."""
    left = {}
    for fails in (False, True):
        with FakeCuda() as cuda:
            model = cuda.place(layers())
            x = torch.randn(SAMPLES, WIDTH).to("cuda", non_blocking=True)
            watch, before = InStep(model), cuda.memory.allocated
            watch.arm(SAMPLES)
            if fails:

                def runs_out(*_):
                    raise torch.OutOfMemoryError(*OUT.args)

                monkeypatch.setattr(watch._lookups, "take_gradient", runs_out)
            first = model[0](x)
            first.register_hook(lambda _: left.update({fails: cuda.memory.allocated - before}))  # noqa: B023
            loss = model[1:](first).sum()
            del first
            loss.backward()
            if fails:
                with pytest.raises(torch.OutOfMemoryError):
                    watch.norms()
            watch.disarm()
            del loss, model
    assert left[True] <= left[False]


def train_at_the_edge(cuda: FakeCuda, source: str, times: int) -> AdaptiveDataLoader:
    """A run by `loader.step` whose first batch runs out so many times."""
    model = cuda.place(nn.Sequential(layers(), RunsOut(times)))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    data = TensorDataset(torch.randn(3 * SAMPLES, WIDTH), torch.randn(3 * SAMPLES, 1))
    loader = AdaptiveDataLoader(
        data, SAMPLES, model=model, optimizer=optimizer, loss_func=nn.MSELoss(), epochs=1, source=source,
        budget="epochs", max_batch_size=SAMPLES, overhead=0.3,
    )  # fmt: skip
    for batch in loader:
        loader.step(tuple(t.to("cuda", non_blocking=True) for t in batch))
    return loader


@pytest.mark.parametrize("source", ["halves", "in_step"])
def test_nothing_of_the_failed_pass_is_held_when_memory_is_given_back(source, monkeypatch):
    held, release = [], CudaMemory.release

    def released(self):
        held.append(torch.cuda.memory_allocated())
        release(self)

    monkeypatch.setattr(CudaMemory, "release", released)
    with FakeCuda() as cuda:
        # One is spent on the look at what kind of loss this is, one on the measurement or the step itself.
        train_at_the_edge(cuda, source, times=2)
        assert cuda.memory.allocated_peak > 4 * MiB
    assert len(held) == 1 and held[0] < MiB


@pytest.mark.parametrize("source", ["halves", "in_step"])
def test_a_log_that_keeps_its_records_keeps_no_tensors(source):
    """As pytest's, and those of services that collect what went before an error."""
    records = []

    class Keeps(logging.Handler):
        def emit(self, record):
            records.append(record)

    logger, handler = logging.getLogger("adaptbs"), Keeps()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with FakeCuda() as cuda:
            loader = train_at_the_edge(cuda, source, times=2)
            del loader
            left = cuda.memory.allocated
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert any("memory ran out" in record.getMessage() for record in records)
    assert left < MiB


def test_a_measured_step_that_runs_out_is_run_in_halves_that_hold_no_more_than_others():
    """The terms of a pass that was begun twice would be held to its end."""
    sizes = Seen()
    with FakeCuda(16 * MiB, expandable=True) as cuda:
        model = cuda.place(layers())
        model[0].register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        data = TensorDataset(torch.randn(4 * SAMPLES, WIDTH), torch.randn(4 * SAMPLES, 1))
        loader = AdaptiveDataLoader(
            data, 4 * SAMPLES, model=model, optimizer=optimizer, batch_loss=lambda m, b: m(b[0]).square().mean(),
            epochs=1, source="in_step", budget="epochs", max_batch_size=4 * SAMPLES, overhead=0.3,
        )  # fmt: skip
        for batch in loader:
            sizes.clear()  # of the look at what kind of loss this is
            loader.step(tuple(t.to("cuda", non_blocking=True) for t in batch))
    assert [size for size in sizes if size > 8] == [4 * SAMPLES, 2 * SAMPLES, 2 * SAMPLES]

"""A loop on a side stream: measured and timed there, or held, on the double of CUDA in tests/helpers/cuda.py."""

import logging
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.loader.streams import STREAM
from tests.helpers.cuda import FakeCuda, Stream

WORK = 0.02  # seconds of a step on the device
mse_loss = nn.functional.mse_loss


def train(cuda: FakeCuda, around_loop, around_step, source: str, iterate=iter, transfer=None):
    """A loop whose steps are queued; the loader, and how many samples each batch had."""
    model = cuda.place(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    data = TensorDataset(torch.randn(1280, 8), torch.randn(1280, 1))
    loader = AdaptiveDataLoader(
        data, 16, model=model, optimizer=optimizer, loss_func=nn.MSELoss(), epochs=2, source=source, overhead=0.3,
        target=lambda noise, size, progress: 32, max_batch_size=64, decide_every=0.1, budget="epochs",
        transfer=transfer,
    )  # fmt: skip
    sizes = []
    with around_loop():
        for _ in range(2):
            for x, y in iterate(loader):
                with around_step():
                    sizes.append(len(x))
                    cuda.queue(WORK)
                    mse_loss(model(x.to("cuda", non_blocking=True)), y.to("cuda", non_blocking=True)).backward()
                    optimizer.step()
                    optimizer.zero_grad()
    return loader, sizes


@pytest.mark.parametrize("source", ["halves", "in_step"])
@pytest.mark.parametrize("side", [False, True])
def test_a_whole_loop_on_a_stream_is_measured_and_timed_there(side, source, caplog):
    with FakeCuda() as cuda, caplog.at_level(logging.WARNING):
        stream = Stream()
        loader, sizes = train(cuda, lambda: cuda.on(stream) if side else nullcontext(), nullcontext, source)
        loader.training_run.controller.state_dict()  # reads the clock
        median = loader.training_run.controller._budget.step_times.median(32)
    assert max(sizes) == 32 and "another" not in caplog.text
    assert median == pytest.approx(WORK, rel=0.1)
    assert "measurement" in loader.history.to_dict()["event"]
    assert (stream.free_at > 0) == side, "all work was queued there"


@pytest.mark.parametrize("source", ["halves", "in_step"])
@pytest.mark.parametrize("transfer", [None, ()], ids=["all follows", "nothing follows"])
def test_steps_on_another_stream_than_the_iteration_hold_the_batch(source, transfer, caplog):
    with FakeCuda() as cuda, caplog.at_level(logging.WARNING):
        stream = Stream()
        loader, sizes = train(cuda, nullcontext, lambda: cuda.on(stream), source, transfer=transfer)
    assert set(sizes) == {16}
    assert loader.training_run.controller.holds.reason == STREAM
    assert caplog.text.count("the whole loop into `with torch.cuda.stream(stream):`") == 1
    # One at most was made before the first step, when no work was under way on either stream.
    assert loader.history.to_dict()["event"].count("measurement") <= 1


def test_a_batch_that_is_asked_for_on_a_side_stream_holds_too(caplog):
    """As by a prefetcher that copies on a stream of its own, and asks for the next batch there."""
    with FakeCuda() as cuda, caplog.at_level(logging.WARNING):
        stream = Stream()

        def prefetched(loader):
            batches = iter(loader)
            while True:
                with cuda.on(stream):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch

        loader, sizes = train(cuda, nullcontext, nullcontext, "halves", prefetched)
    assert set(sizes) == {16} and loader.training_run.controller.holds.reason == STREAM
    assert "the whole loop into" in caplog.text


def test_the_iterator_may_be_made_on_another_stream(caplog):
    """Only where a batch is asked for counts."""
    with FakeCuda() as cuda, caplog.at_level(logging.WARNING):
        stream, first = Stream(), Stream()

        def begun_elsewhere(loader):
            with cuda.on(first):
                return iter(loader)

        _, sizes = train(cuda, lambda: cuda.on(stream), nullcontext, "halves", begun_elsewhere)
    assert max(sizes) == 32 and "another" not in caplog.text

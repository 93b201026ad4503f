"""Memory of a CUDA device, of which this process is allowed 1 GiB. Simulated: test_probe, test_out_of_memory."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from adaptbs import AdaptiveDataLoader, probe_memory
from adaptbs.memory.device import HEADROOM, CudaMemory

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ALLOWED = 1 << 30  # bytes
INPUTS, WIDTH = 256, 1024
mse_loss = nn.functional.mse_loss


@pytest.fixture
def allowed():
    def give_back() -> None:
        gc.collect()
        torch.cuda.empty_cache()

    give_back()
    torch.cuda.set_per_process_memory_fraction(ALLOWED / torch.cuda.get_device_properties(0).total_memory)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    give_back()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)
    ).cuda()  # fmt: skip


def data(n: int) -> TensorDataset:
    x = torch.randn(n, INPUTS, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, x.sum(1, keepdim=True))


def on_device(model: nn.Module, batch) -> torch.Tensor:
    return mse_loss(model(batch[0].cuda()), batch[1].cuda())


def everything(model, optimizer):
    return copy.deepcopy([
        *(p.detach().cpu() for p in model.parameters()), *(p.grad for p in model.parameters()),
        *(v.cpu() for entry in optimizer.state.values() for v in entry.values()),
        torch.get_rng_state(), torch.cuda.get_rng_state(),
    ])  # fmt: skip


def same(a, b) -> bool:
    return len(a) == len(b) and all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_limit_is_of_what_the_process_is_allowed(allowed):
    memory = CudaMemory(torch.device("cuda"))
    assert 0 < memory.limit() <= HEADROOM * ALLOWED


def test_who_watches_leaves_the_peak_as_it_was():
    memory = CudaMemory(torch.device("cuda"))
    torch.empty(64 << 20, dtype=torch.uint8, device="cuda")  # (gone at once, but seen)
    before = torch.cuda.max_memory_allocated()
    with memory.watched() as seen:
        torch.empty(1 << 20, dtype=torch.uint8, device="cuda")
    assert memory.in_use() + (1 << 20) <= seen.peak < before
    # A block from which no more than 1 MiB would be left over is not split.
    assert 0 <= torch.cuda.max_memory_allocated() - before <= 1 << 20


def run_step(model, optimizer, size: int) -> int:
    """The peak of a training step."""
    torch.cuda.reset_peak_memory_stats()
    on_device(model, data(size)[:]).backward()
    optimizer.step()
    optimizer.zero_grad()
    return torch.cuda.max_memory_allocated()


@pytest.mark.parametrize("steps", [0, 2])
def test_what_the_probe_finds_fits_and_it_leaves_no_trace(allowed, steps):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(steps):
        run_step(model, optimizer, 8)
    before = everything(model, optimizer)
    found = probe_memory(model, None, DataLoader(data(512), 64), optimizer=optimizer, batch_loss=on_device,
                         max_batch_size=1 << 18)  # fmt: skip
    assert same(everything(model, optimizer), before)
    assert len(found.trials) <= 8 and sum(trial.peak is None for trial in found.trials) <= 2
    assert found.batch_size > 64
    run_step(model, optimizer, found.batch_size)
    with pytest.raises(torch.OutOfMemoryError):
        run_step(model, optimizer, 2 * found.batch_size)


def test_a_probe_that_dies_leaves_no_trace_either(allowed):
    model, calls = network(), []
    optimizer = torch.optim.AdamW(model.parameters())
    run_step(model, optimizer, 8)

    def dies(model, batch):
        calls.append(len(batch[0]))
        if len(calls) == 4:
            raise ZeroDivisionError("in the second trial")
        return on_device(model, batch)

    before = everything(model, optimizer)
    with pytest.raises(ZeroDivisionError):
        probe_memory(model, None, DataLoader(data(512), 64), optimizer=optimizer, batch_loss=dies,
                     max_batch_size=1 << 18)  # fmt: skip
    assert same(everything(model, optimizer), before)


def train(dataset, batch_size: int, **arguments) -> tuple[torch.Tensor, AdaptiveDataLoader, torch.Tensor]:
    """An epoch by `loader.step`: the weights, and how often each sample came."""
    model = network()
    optimizer, seen = torch.optim.SGD(model.parameters(), 1e-4), torch.zeros(len(dataset), dtype=torch.int64)
    rows = TensorDataset(*dataset.tensors, torch.arange(len(dataset)))
    loader = AdaptiveDataLoader(
        rows, batch_size, shuffle=True, generator=torch.Generator().manual_seed(2), model=model, optimizer=optimizer,
        batch_loss=on_device, epochs=1, budget="epochs", **arguments,
    )  # fmt: skip
    for batch in loader:
        seen[batch[2]] += 1
        loader.step(batch)
    return torch.cat([p.detach().cpu().flatten() for p in model.parameters()]), loader, seen


def events(loader: AdaptiveDataLoader) -> list[str]:
    return loader.history.to_dict()["event"]


def test_a_batch_that_does_not_fit_is_run_in_pieces(allowed):
    model = network()
    fits = probe_memory(model, None, DataLoader(data(512), 64), batch_loss=on_device, max_batch_size=1 << 18).batch_size
    del model
    rows, batch_size = data(4 * fits), 2 * fits
    hold = {"target": lambda noise_scale, size, progress: size, "max_batch_size": batch_size, "exceed_memory": True}
    short, loader, seen = train(rows, batch_size, overhead=0, **hold)
    assert events(loader).count("out of memory") == 1 and (seen == 1).all()
    torch.cuda.set_per_process_memory_fraction(1.0)
    enough, loader, seen = train(rows, batch_size, overhead=0, **hold)
    assert "out of memory" not in events(loader) and (seen == 1).all()
    torch.testing.assert_close(short, enough, rtol=1e-4, atol=1e-6)


def test_growth_ends_where_memory_does(allowed):
    rows = data(200_000)
    _, loader, seen = train(rows, 256, target=lambda *_: 1 << 20, max_batch_size=1 << 20, overhead=0.05)
    assert (seen == 1).all() and "out of memory" not in events(loader)
    assert "memory" in loader.history.decisions()["reason"]
    assert loader.batch_size > 1024


def test_a_loop_that_resets_the_peak_is_not_grown_into_an_error(allowed):
    model, rows = network(), data(60_000)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    loader = AdaptiveDataLoader(
        rows, 256, shuffle=True, model=model, optimizer=optimizer, batch_loss=on_device, epochs=1, budget="epochs",
        target=lambda *_: 1 << 20, max_batch_size=1 << 20, overhead=0.05,
    )  # fmt: skip
    for batch in loader:
        on_device(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.reset_peak_memory_stats()
    assert loader.batch_size > 1024

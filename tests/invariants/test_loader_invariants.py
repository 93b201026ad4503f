"""What must hold whatever sizes, lengths and policies are drawn."""

from __future__ import annotations

import gc
import io
import itertools
import math
import multiprocessing
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.decision.policy import SHRINK_UNTIL, Situation, decide, efficiency, goodput_optimum
from adaptbs.gradients.halves import HalfBatches
from adaptbs.memory.limit import within_memory
from adaptbs.model.batch_loss import BatchLoss
from adaptbs.noise_scale.b_simple import estimate, to_floats
from adaptbs.sampling.batch_sampler import AdaptiveBatchSampler
from adaptbs.timing.step_time import StepTime
from adaptbs.types import NoiseScale
from tests.integration.training import Numbered, adaptive, network, train

sizes = st.lists(st.integers(1, 300), min_size=1, max_size=40)


@given(n=st.integers(1, 2000), start=st.integers(1, 300), drawn=sizes, drop_last=st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_sequence_of_sizes_delivers_each_index_once(n, start, drawn, drop_last):
    cycle = iter(drawn * (n + 1))
    cut = AdaptiveBatchSampler(range(n), lambda: next(cycle), start, drop_last)
    batches = list(cut)
    indices = [i for batch in batches for i in batch]
    assert indices == list(range(n - n % start if drop_last else n))
    assert [issued.num_samples for issued in cut.issued] == [len(batch) for batch in batches]
    assert all(issued.num_samples <= issued.cut_size for issued in cut.issued)


@given(n=st.integers(2, 2000), power=st.integers(0, 6), growth=st.lists(st.booleans(), min_size=40, max_size=40))
@settings(max_examples=200, deadline=None)
def test_growth_by_doubling_leaves_no_tail_shorter_than_stocks(n, power, growth):
    start = 2**power
    size = start

    def grown():
        nonlocal size
        if growth and growth.pop():
            size *= 2
        return size

    cut = AdaptiveBatchSampler(range(n), grown, start, drop_last=False)
    shortest = min(len(batch) for batch in cut)
    assert shortest >= min(n, n % start or start)


@given(c=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_loss_times_a_constant_leaves_the_noise_scale(c, seed):
    torch.manual_seed(seed)
    model, x, y = nn.Linear(5, 1), torch.randn(64, 5), torch.randn(64, 1)

    def measured(factor: float) -> NoiseScale:
        source = HalfBatches(model, BatchLoss(lambda pred, target: factor * nn.functional.mse_loss(pred, target)))
        return estimate(to_floats([source.measure((x[i : i + 16], y[i : i + 16])) for i in range(0, 64, 16)]))

    one, scaled = measured(1.0), measured(c)
    assert scaled.trace == pytest.approx(c**2 * one.trace, rel=1e-3)
    assert scaled.low == pytest.approx(one.low, rel=1e-2, abs=1e-3)
    if one.simple is not None and one.simple < 1e3:
        assert scaled.simple == pytest.approx(one.simple, rel=1e-2)


@given(
    n=st.integers(1, 200), batch_size=st.integers(1, 64), shuffle=st.booleans(), drop_last=st.booleans(),
    seed=st.integers(0, 9),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_adaptivity_off_delivers_stocks_batches(n, batch_size, shuffle, drop_last, seed):
    batch_size = min(n, batch_size)
    data = TensorDataset(torch.arange(n))
    model = nn.Linear(1, 1)
    ours = AdaptiveDataLoader(
        data, batch_size, shuffle, drop_last=drop_last, model=model, optimizer=SGD(model.parameters(), 0.1),
        epochs=2, overhead=0, max_batch_size=batch_size,
    )  # fmt: skip
    stock = DataLoader(data, batch_size, shuffle, drop_last=drop_last)
    assert len(ours) == len(stock)
    delivered = []
    for loader in (ours, stock):
        torch.manual_seed(seed)
        delivered.append([batch[0].tolist() for _ in range(2) for batch in loader] + [torch.rand(1).item()])
    assert delivered[0] == delivered[1]


limits = st.floats(1, 1e5) | st.just(math.inf)


@given(
    low=st.floats(0, 1e6), batch_size=st.integers(1, 4096), reference=st.integers(1, 64), progress=st.floats(0, 1),
    a=st.floats(0, 1), b=st.floats(1e-9, 1), cap=st.integers(1, 8192), memory=limits,
    target=st.sampled_from(["goodput", "noise_scale"]),
)  # fmt: skip
@settings(max_examples=500, deadline=None)
def test_decisions_stay_within_every_limit(low, batch_size, reference, progress, a, b, cap, memory, target):
    cap = max(cap, batch_size)
    noise = NoiseScale(grad_sq=1.0, trace=low, low=low, high=math.inf, cautious=low, measurements=9)
    now = Situation(
        noise_scale=noise, batch_size=batch_size, reference=reference, progress=progress,
        step_time=StepTime(a, b), max_batch_size=cap,
    )  # fmt: skip
    size = within_memory(decide(now, target), max(memory, batch_size)).batch_size
    assert 1 <= size <= min(max(2 * batch_size, reference), cap)  # (up to R in one leap)
    assert size <= max(memory, batch_size)
    if size > batch_size and target == "goodput":
        assert efficiency(now.critical * low, size, now.reference) >= 0.8 - 1e-9
    if size < batch_size:
        assert size >= min(now.reference, batch_size)
        slower = target == "goodput" and goodput_optimum(now.critical * low, now.step_time) < 0.75 * batch_size
        assert progress <= SHRINK_UNTIL or slower


def test_saved_between_epochs_and_resumed_is_never_stopped():
    data = Numbered(600)

    def parts():
        model = network(4)  # whose batch grows
        optimizer = SGD(model.parameters(), 0.01, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=4 * 38)
        loader = adaptive(
            data,
            model,
            optimizer,
            scheduler=scheduler,
            epochs=4,
            overhead=0.3,
            step_time=(4e-3, 1e-6),
            max_batch_size=256,
        )
        return model, optimizer, scheduler, loader

    model, optimizer, scheduler, loader = parts()
    train(model, optimizer, loader, 2, scheduler)
    buffer = [model.state_dict(), optimizer.state_dict(), scheduler.state_dict(), loader.state_dict()]
    saved = io.BytesIO()
    torch.save(buffer, saved)
    rng = torch.get_rng_state()
    unbroken = train(model, optimizer, loader, 2, scheduler)

    others = parts()
    for part, state in zip(others, torch.load(io.BytesIO(saved.getvalue())), strict=True):
        part.load_state_dict(state)
    torch.set_rng_state(rng)
    model, optimizer, scheduler, resumed = others
    again = train(model, optimizer, resumed, 2, scheduler)
    assert again.sizes == unbroken.sizes and again.epochs == unbroken.epochs and again.used == unbroken.used
    assert torch.equal(again.weights, unbroken.weights)
    assert resumed.history.to_dict() == loader.history.to_dict()
    assert max(again.sizes) > 16


@given(
    n=st.integers(1, 120), batch_size=st.integers(1, 16), workers=st.integers(0, 4), prefetch=st.integers(1, 3),
    persistent=st.booleans(), pin=st.booleans(), drop_last=st.booleans(), parts=st.integers(1, 3),
    drawn=st.lists(st.integers(1, 64), min_size=1, max_size=6), stop=st.none() | st.integers(1, 6), grow=st.booleans(),
)  # fmt: skip
@settings(max_examples=12, deadline=None)
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_every_way_to_load_delivers_each_sample_once_and_leaves_no_worker(
    n, batch_size, workers, prefetch, persistent, pin, drop_last, parts, drawn, stop, grow
):
    batch_size = min(batch_size, n)
    before = set(multiprocessing.active_children())
    how = {"drop_last": drop_last, "pin_memory": pin, "num_workers": workers}
    if workers:
        how |= {"prefetch_factor": prefetch, "persistent_workers": persistent}
    wanted = itertools.cycle(drawn)
    model = nn.Linear(1, 1)
    loader = AdaptiveDataLoader(
        TensorDataset(torch.arange(n)), batch_size, shuffle=True, model=model, optimizer=SGD(model.parameters(), 0.1),
        epochs=3, overhead=0, accumulation_steps=parts, decide_every=1e-6, max_batch_size=n if grow else batch_size,
        target=lambda noise_scale, size, progress: next(wanted) if grow else size, **how,
    )  # fmt: skip
    delivered = n - n % batch_size if drop_last else n
    for i, _ in enumerate(loader):  # broken off, or whole
        if i + 1 == stop:
            break
    for _ in range(2):
        seen = [batch[0].tolist() for batch in loader]
        flat = [i for batch in seen for i in batch]
        assert len(flat) == len(set(flat)) == delivered
        if not grow:
            stock = DataLoader(TensorDataset(torch.arange(n)), batch_size, drop_last=drop_last)
            assert [len(batch) for batch in seen] == [len(batch[0]) for batch in stock]
    loader.close()
    del loader
    gc.collect()
    deadline = time.monotonic() + 20
    while set(multiprocessing.active_children()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(multiprocessing.active_children()) - before

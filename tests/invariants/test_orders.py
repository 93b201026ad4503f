"""Whatever draws the order: saved anywhere, any number of times, and gone on with is never stopped."""

from __future__ import annotations

import io
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from adaptbs import AdaptiveDataLoader
from tests.unit.sampling.test_draw import KINDS, Unknown

ORDERS = [*sorted(set(KINDS) - {"range", "names"}), "unknown"]


class Named(TensorDataset):
    def __getitem__(self, i):
        return super().__getitem__(int(i))


def made(kind: str, n: int, own: bool, ranks: int, drop_last: bool, start: int, seed: int):
    """A loader whose batch grows by one a decision, after the generators are seeded."""
    torch.manual_seed(seed)
    generator = Generator().manual_seed(seed) if own or ranks > 1 else None
    sampler = Unknown(n) if kind == "unknown" else KINDS[kind](n, generator)
    model = nn.Linear(1, 1)
    among = {"rank": ranks - 1, "world_size": ranks, "step_time": (1.0, 1.0)} if ranks > 1 else {}
    loader = AdaptiveDataLoader(
        Named(torch.arange(n)), start, sampler=sampler, drop_last=drop_last, generator=generator, model=model,
        optimizer=SGD(model.parameters(), 0.1), epochs=2, overhead=0, decide_every=1e-6, max_batch_size=n,
        target=lambda _, size, __: size + ranks, **among,
    )  # fmt: skip
    return loader, model


def batches(loader, model):
    """Indices of each batch to the end of the second epoch; each is trained on."""
    while loader.training_run.controller.progress_tracker.epoch < 2:
        for (batch,) in loader:
            model(batch[:, None].float()).sum().backward()
            yield batch.tolist()


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


@given(
    kind=st.sampled_from(ORDERS), n=st.integers(32, 90), own=st.booleans(), ranks=st.sampled_from([1, 1, 3]),
    drop_last=st.booleans(), start=st.integers(1, 5), stops=st.lists(st.integers(0, 12), min_size=1, max_size=4),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_saved_anywhere_and_gone_on_with_is_never_stopped(kind, n, own, ranks, drop_last, start, stops):
    how = (kind, n, own or ranks > 1, ranks, drop_last, start)
    if kind == "unknown" and ranks > 1:
        how = ("sequential", *how[1:])  # (ranks without a process group cannot agree on a random order)
    unbroken = list(batches(*made(*how, seed=1)))
    loader, model = made(*how, seed=1)
    underway, seen = batches(loader, model), []
    for resumed, stop in enumerate(stops):
        seen += islice(underway, stop + 1)
        if len(seen) == len(unbroken):
            break
        state, random = through_a_file((loader.state_dict(), torch.get_rng_state()))
        if resumed % 2:
            continue  # it goes on itself, after a state has been saved
        loader, model = made(*how, seed=2 + resumed)
        loader.load_state_dict(state)
        torch.set_rng_state(random)
        underway = batches(loader, model)
    assert seen + list(underway) == unbroken


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", ORDERS)
def test_a_batch_that_stays_is_stocks_whatever_draws_the_order(kind, given):
    delivered = []
    for ours in (True, False):
        torch.manual_seed(3)
        generator = Generator().manual_seed(4) if given else None
        sampler = Unknown(50) if kind == "unknown" else KINDS[kind](50, generator)
        data, model = Named(torch.arange(50)), nn.Linear(1, 1)
        torch.manual_seed(5)
        if ours:
            loader = AdaptiveDataLoader(
                data, 8, sampler=sampler, generator=generator, model=model, optimizer=SGD(model.parameters(), 0.1),
                epochs=2, overhead=0, max_batch_size=8,
            )  # fmt: skip
        else:
            loader = DataLoader(data, 8, sampler=sampler, generator=generator)
        delivered.append([[batch[0].tolist() for batch in loader] for _ in range(2)] + [torch.rand(2).tolist()])
    assert delivered[0] == delivered[1]

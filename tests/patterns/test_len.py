"""`len(loader)` while the batch grows: the batches delivered, and those left."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD
from torch.utils.data import DataLoader

from tests.integration.test_streams import Stream
from tests.integration.training import FORCED, Numbered, adaptive, doubling, loss_of, network


def made(n: int = 1000, **arguments):
    model = network()
    optimizer = SGD(model.parameters(), 0.01)
    arguments = {"target": doubling(4), **FORCED} | arguments
    return model, optimizer, adaptive(Numbered(n) if isinstance(n, int) else n, model, optimizer, **arguments)


def last_ones(loader) -> tuple[int, list[int]]:
    """Batches of an epoch, and where `(i + 1) == len(loader)` held."""
    found, i = [], -1
    for i, _ in enumerate(loader):
        assert len(loader) > i
        if i + 1 == len(loader):
            found.append(i)
    return i + 1, found


@pytest.mark.parametrize("accumulation_steps", [1, 3])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("n", [1000, 1024, 1009])
def test_the_last_batch_is_told_once_and_the_mean_is_a_mean(n, workers, drop_last, accumulation_steps):
    _, _, loader = made(n, num_workers=workers, drop_last=drop_last, accumulation_steps=accumulation_steps, epochs=3)
    assert len(loader) == len(DataLoader(Numbered(n), 16, drop_last=drop_last))
    epochs = []
    for _ in range(3):
        batches, found = last_ones(loader)
        assert found == [batches - 1]
        assert len(loader) == batches, "until the next epoch begins"
        epochs.append(batches)
    assert epochs[-1] < epochs[0]


def test_shares_of_a_batch_count_like_batches():
    """Two processes that agree by what they are given."""
    _, _, loader = made(1000, rank=0, world_size=2, step_time=(1e-3, 1e-6), shuffle=False)
    for _ in range(2):
        batches, found = last_ones(loader)
        assert found == [batches - 1]


def test_a_look_into_the_loader_leaves_it_as_it_was():
    _, _, loader = made(1000)
    before = len(loader)
    next(iter(loader))
    assert len(loader) == before
    for i, _ in enumerate(loader):
        if i == 8:
            now = len(loader)
            next(iter(loader))
            assert len(loader) == now
            break
    assert i + 1 < len(loader) < before, "an epoch that was broken off: those delivered and those left"


def test_an_epoch_that_is_gone_on_with_counts_what_is_left_of_it():
    def run():
        return made(1000, shuffle=False, target=lambda noise, size, progress: 16 if progress < 0.2 else 64)

    model, _, loader = run()
    for i, batch in enumerate(loader):
        loss_of(model, batch).backward()
        if i == 9:
            state, left = loader.state_dict(), len(loader) - 10
            break
    _, _, resumed = run()
    resumed.load_state_dict(state)
    batches, found = last_ones(resumed)
    assert found == [batches - 1] and batches < left, "as it has grown"


def test_a_run_that_ends_by_its_progress_in_mid_epoch_ends_its_last_epoch_there():
    model, optimizer, loader = made(
        4096, overhead=0.5, step_time=(1.0, 1e-6), target=lambda *_: 256, max_extra=0.3, decide_every=0.05
    )
    for _ in loader.epochs(2):
        found, batches = [], 0
        for i, batch in enumerate(loader):
            loss_of(model, batch).backward()
            optimizer.step(), optimizer.zero_grad()
            batches = i + 1
            if batches == len(loader):
                found.append(batches)
        assert found == [batches] and len(loader) == batches
    assert loader.progress == 1


def test_a_pass_without_gradients_has_the_length_of_its_own_batches():
    """As an accuracy on the training data, between two epochs."""
    _, _, loader = made(1000)
    for _ in range(2):
        last_ones(loader)
        with torch.no_grad():
            batches = sum(1 for _ in loader)
            assert len(loader) == batches == -(-1000 // loader.batch_size)


@pytest.mark.parametrize("workers", [0, 2])
def test_of_a_stream_it_is_an_estimate_until_it_has_ended(workers):
    _, _, loader = made(Stream(1000, shards=True), shuffle=None, num_workers=workers)
    for _ in range(2):
        batches = sum(1 for _ in loader)
        assert len(loader) == batches

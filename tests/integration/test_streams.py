"""IterableDatasets: what stock torch would deliver, at a size that may change."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from adaptbs import AdaptiveDataLoader
from tests.integration.training import FORCED, doubling, loss_of, network


class Stream(IterableDataset):
    """Numbered examples; `shards`: each worker has its own, of different lengths; else each has all of them."""

    def __init__(self, n: int, shards: bool = True) -> None:
        self.n, self.shards = n, shards

    def __len__(self) -> int:
        return self.n

    def __iter__(self):
        worker = get_worker_info()
        own = range(self.n)
        if worker is not None and self.shards:
            third = self.n // 3  # the first worker has a third of them
            own = (range(third), range(third, self.n))[worker.id]
        return ((torch.full((8,), float(i)), torch.zeros(1), i) for i in own)


def adaptive(data, batch_size: int = 8, **arguments) -> tuple[AdaptiveDataLoader, torch.nn.Module]:
    model = network()
    optimizer = SGD(model.parameters(), 1e-6)
    arguments = {"overhead": 0, "epochs": 2} | arguments
    return AdaptiveDataLoader(data, batch_size, model=model, optimizer=optimizer, **arguments), model


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shards", [False, True])
def test_at_a_constant_size_it_delivers_stocks_batches(workers, shards, drop_last):
    data = Stream(100, shards)
    how = {"num_workers": workers, "drop_last": drop_last}
    stock = [batch[2].tolist() for batch in DataLoader(data, 8, **how)]
    loader, _ = adaptive(data, overhead=0, max_batch_size=8, **how)
    assert len(loader) == len(DataLoader(data, 8, drop_last=drop_last))
    for _ in range(2):
        assert [batch[2].tolist() for batch in loader] == stock
        # The length of a stream is an estimate; afterwards it is known how many batches there were.
        assert len(loader) == max(len(stock), len(DataLoader(data, 8, drop_last=drop_last)))


@pytest.mark.parametrize("workers", [0, 2])
def test_through_growth_each_sample_comes_once_and_is_counted(workers):
    loader, model = adaptive(Stream(600), num_workers=workers, target=doubling(), **FORCED)
    for epoch in (1, 2):
        seen, sizes = [], []
        for batch in loader:
            loss_of(model, batch).backward()
            seen += batch[2].tolist()
            sizes.append(len(batch[2]))
            assert loader.training_run.tracker.current.num_samples == sizes[-1]
            assert loader.lr_factor >= 1
        assert sorted(seen) == list(range(600))
        assert loader.training_run.controller.progress_tracker.samples == 600 * epoch
    assert max(sizes) > 32


@pytest.mark.parametrize("every", [1, 2, 3])
def test_with_drop_last_no_more_is_dropped_than_stock_drops(every):
    """A DataLoader drops what is left of a stream's latest request, which had been nearly a whole larger batch."""
    # A model without BatchNorm, which takes the step: else the batch would be held.
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = SGD(model.parameters(), 1e-6)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=10)
    loader = AdaptiveDataLoader(
        Stream(234), 8, model=model, optimizer=optimizer, drop_last=True, epochs=3, accumulation_steps=every,
        scheduler=scheduler, batch_loss=loss_of, **{**FORCED, "target": lambda noise, size, progress: 64 * every},
    )  # fmt: skip
    for _ in range(3):
        seen = []
        for i, batch in enumerate(loader, 1):
            loss_of(model, batch).backward()
            if i % every == 0:
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
            seen += batch[2].tolist()
        assert i == len(loader) and seen == list(range(232))
    assert loader.batch_size == 64 and scheduler.last_epoch == 3 * 29 // every


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("every", [2, 3])
def test_the_batches_that_arrive_make_the_steps_that_are_accumulated(workers, every):
    """Also those of a worker that ends in mid-step, and of the pass that begins within one."""
    grows = {"target": lambda noise, size, progress: int(8 * every * (1 + 7 * progress)), "max_batch_size": 64}
    paced = {"overhead": 0.5, "step_time": (1e-3, 1e-5), "decide_every": 0.02, "max_extra": 0.8}
    # A worker's last batch may hold one sample, as with a stock DataLoader, and BatchNorm takes none such. The step is
    # taken, as else the batch would be held.
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = SGD(model.parameters(), 1e-6)
    loader = AdaptiveDataLoader(
        Stream(403), 8, model=model, optimizer=optimizer, num_workers=workers, accumulation_steps=every,
        batch_loss=loss_of, **grows, **paced,
    )  # fmt: skip
    tracker, sizes, passes = loader.training_run.tracker, set(), loader._session.source
    for _ in loader.epochs(3):
        step: list[int] = []
        for i, batch in enumerate(loader):
            loss_of(model, batch).backward()
            step.append(tracker.current.cut_size)
            assert tracker.current.ends_step == ((i + 1) % every == 0)
            if tracker.current.ends_step:
                optimizer.step()
                optimizer.zero_grad()
                assert len(set(step)) == 1, "a step has one size"
                sizes.add(step[0])
                step = []
        assert not step
    assert len(sizes) > 5 and passes.passes > 3


def test_what_batches_hold_decides_whatever_collate_makes_of_them():
    """A layout without a number of samples: then what was asked for counts."""
    loader, _ = adaptive(Stream(64), collate_fn=lambda examples: [i for _, _, i in examples], overhead=0)
    assert [len(batch) for batch in loader] == [8] * 8
    assert loader.training_run.controller.progress_tracker.samples == 64


def test_without_a_length_it_is_refused_with_the_reason():
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(range(8))

    with pytest.raises(TypeError, match=r"Endless has no length.*__len__.*estimate"):
        adaptive(Endless())
    with pytest.raises(ValueError, match="shuffle"):
        adaptive(Stream(64), shuffle=True)

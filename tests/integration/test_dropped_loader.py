"""A loader that nobody refers to any more is gone at once, with its workers, data and model: no cycle keeps it."""

from __future__ import annotations

import gc
import multiprocessing
import time
import weakref

import pytest
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from tests.integration.test_streams import Stream
from tests.integration.training import FORCED, Numbered, adaptive, doubling, loss_of, network


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


LOADERS = {
    "measured": {"overhead": 0.3},
    "forced": {"target": doubling(), **FORCED},
    "scheduled": {"overhead": 0.3, "scheduled": True},
    "accumulated": {"overhead": 0.3, "accumulation_steps": 2},
    "stream": {"overhead": 0, "shuffle": None},
    "workers": {"overhead": 0, "num_workers": 2},
    "kept workers": {"overhead": 0, "num_workers": 2, "persistent_workers": True},
    "pinned": {"overhead": 0, "pin_memory": True},
}


@pytest.mark.parametrize("stop", [None, 2])
@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_it_is_gone_at_del(kind, stop, no_collector):
    how, before = dict(LOADERS[kind]), set(multiprocessing.active_children())
    data, model = Stream(200) if kind == "stream" else Numbered(200), network()
    optimizer = SGD(model.parameters(), 1e-4)
    scheduler = OneCycleLR(optimizer, 1e-3, total_steps=26) if how.pop("scheduled", False) else None
    loader = adaptive(data, model, optimizer, scheduler=scheduler, **how)
    for epoch in loader.epochs(2):
        for i, batch in enumerate(loader):
            loss_of(model, batch).backward()
            optimizer.step()
            if scheduler is not None and i < 12:
                scheduler.step()
            if epoch and i + 1 == stop:
                break
    loader.load_state_dict(loader.state_dict())
    run = loader.training_run
    dropped = {
        name: weakref.ref(thing)
        for name, thing in {
            "loader": loader, "data": data, "run": run, "controller": run.controller, "tracker": run.tracker,
            "sampler": loader.batch_sampler, "model": model,
        }.items()
    }  # fmt: skip
    del run, loader, data, batch
    assert [name for name, thing in dropped.items() if thing() is not None] == ["model"]
    del model
    assert dropped["model"]() is None, "it was the caller's alone"
    deadline = time.monotonic() + 20
    while set(multiprocessing.active_children()) - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not set(multiprocessing.active_children()) - before
    assert optimizer.param_groups[0]["params"]


def test_many_loaders_on_one_optimizer_leave_nothing_behind(no_collector):
    model, data = network(), Numbered(64)
    optimizer = SGD(model.parameters(), 1e-4)

    def objects() -> int:
        for _ in range(20):
            for batch in adaptive(data, model, optimizer, overhead=0.3):
                loss_of(model, batch).backward()
                optimizer.step()
                optimizer.zero_grad()
        return len(gc.get_objects())

    objects()
    before = objects()
    assert objects() <= before + 20

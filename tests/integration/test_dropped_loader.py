"""A loader that nobody refers to any more is gone at once, with its workers, data and model: no cycle keeps it."""

from __future__ import annotations

import gc
import multiprocessing
import time
import weakref

import pytest
from torch import nn
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


class Trainer:
    """Has a loader, and a hook of its own on the optimizer that the loader follows."""

    def __init__(self, **arguments) -> None:
        self.model = network()
        self.optimizer = SGD(self.model.parameters(), 1e-4)
        self.loader = adaptive(Numbered(200), self.model, self.optimizer, **arguments)
        self.optimizer.register_step_post_hook(self.note)
        self.model.register_forward_hook(self.note)

    def note(self, *_) -> None:
        pass

    def train(self) -> None:
        self.batches = iter(self.loader)  # kept where a loop goes on with next()
        for _ in range(3):
            loss_of(self.model, next(self.batches)).backward()
            self.optimizer.step()


def test_a_user_s_hook_that_knows_the_loader_does_not_keep_it_for_ever():
    trainer = Trainer(overhead=0.3)
    trainer.train()
    dropped = {name: weakref.ref(getattr(trainer, name)) for name in ("model", "optimizer", "loader")}
    del trainer
    gc.collect()
    assert not [name for name, reference in dropped.items() if reference() is not None]


@pytest.mark.parametrize("together", [False, True])
def test_the_optimizer_and_the_model_of_a_dropped_loader_are_as_they_were(together):
    model = network()
    optimizer = SGD(model.parameters(), 1e-4)
    loader = adaptive(Numbered(200), model, optimizer, overhead=0.3)
    kept = list(loader)  # so that the batch of a step is lost, and the model watched
    for batch in kept[:4]:
        loss_of(model, batch).backward()
        optimizer.step()
    assert model._forward_pre_hooks and optimizer._optimizer_step_pre_hooks
    if together:
        loader.training_run.cycle = loader._session  # freed by the collector alone
    del loader
    gc.collect()
    assert not model._forward_pre_hooks and not optimizer._optimizer_step_pre_hooks


def test_an_iteration_that_is_not_gone_on_with_keeps_no_other_optimizer():
    trainer = Trainer(overhead=0.3)
    trainer.train()
    other = SGD(network().parameters(), 1e-4)
    other.step()
    seen = weakref.ref(other)
    del other
    gc.collect()
    assert seen() is None


def test_a_closed_loader_watches_no_step_of_an_iterator_that_is_still_held():
    """Hooks of a measured step had stayed on the model, as in a trainer that an error has ended before the step."""
    net = nn.Linear(8, 1)  # without BatchNorm, so that it is measured in the step
    optimizer = SGD(net.parameters(), 0.01)
    loader = adaptive(Numbered(400), net, optimizer, overhead=0.3)
    batches = iter(loader)
    for _ in range(len(loader)):
        batch = next(batches)
        if hooks(net):
            break
        loss_of(net, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert hooks(net), "a step should be measured"
    loader.close()
    assert not hooks(net)


def hooks(net) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in net.modules())

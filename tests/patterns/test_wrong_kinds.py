"""Arguments of a wrong kind: an error names the argument, the rule, the value and what to do, and nothing changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adam, Optimizer
from torch.utils.data import DataLoader

from adaptbs import bs_find, probe_memory
from tests.unit.test_errors import DATA, Run, refused


class Lookahead(Optimizer):
    """Wraps another optimizer, and does not call super().__init__()."""

    def __init__(self, base) -> None:
        self.base, self.param_groups, self.defaults, self.state = base, base.param_groups, base.defaults, base.state

    def step(self, closure=None):
        return self.base.step(closure)


class Prepared(Optimizer):
    """Wraps another one by properties, as trainers do."""

    def __init__(self, base) -> None:
        self.base = base

    @property
    def param_groups(self):
        return self.base.param_groups

    @property
    def state(self):
        return self.base.state


class Handmade(Optimizer):
    """Has no optimizer inside, and forgets super().__init__() too."""

    def __init__(self, parameters) -> None:
        self.param_groups, self.state, self.defaults = [{"params": list(parameters), "lr": 0.1}], {}, {}


class Forwarding(Lookahead):
    """Hands on what it does not have, hooks included."""

    def __getattr__(self, name):
        return getattr(self.__dict__["base"], name)


def unhooked(run: Run):
    for kind in (Lookahead, Prepared):
        yield kind(run.optimizer)
    yield Handmade(run.model.parameters())


def find(run: Run, **changed):
    arguments = {"model": run.model, "loss_func": mse_loss, "loader": DataLoader(DATA, 8)} | changed
    return bs_find(arguments.pop("model"), arguments.pop("loss_func"), arguments.pop("loader"), **arguments)


def probe(run: Run, **changed):
    arguments = {"model": run.model, "loss_func": mse_loss, "loader": DataLoader(DATA, 8)} | changed
    return probe_memory(arguments.pop("model"), arguments.pop("loss_func"), arguments.pop("loader"), **arguments)


def load(run: Run, **changed):
    return run.loader(scheduler=None, epochs=1, **changed)


FACES = pytest.mark.parametrize("face", [load, find, probe])


@FACES
@pytest.mark.parametrize("which", range(3))
def test_an_optimizer_without_hooks(face, which):
    run = Run()
    optimizer = list(unhooked(run))[which]
    words = ["optimizer=", type(optimizer).__name__, "super().__init__()", "give the one that it wraps"]
    with refused(run, TypeError, *words):
        face(run, optimizer=optimizer)


def test_a_wrapper_that_hands_its_hooks_on_is_followed():
    run = Run()
    wrapper = Forwarding(run.optimizer)
    inside = []
    loader = load(run, optimizer=wrapper, target=lambda *_: 16, decide_every=1e-6, overhead=0, max_batch_size=16)
    run.optimizer.register_step_pre_hook(lambda *_: inside.append(run.optimizer.param_groups[0]["lr"]))
    for x, y in loader:
        mse_loss(run.model(x), y).backward()
        wrapper.step()
        wrapper.zero_grad()
    assert inside[-1] == pytest.approx(4 * inside[0]), "as of the SGD that it wraps"


@FACES
@pytest.mark.parametrize("model", [3, None, "resnet18", nn.Linear, [nn.Linear(1, 1)]])
def test_a_model_that_is_no_module(face, model):
    run = Run()
    with refused(run, TypeError, "model=", "torch.nn.Module"):
        face(run, model=model)


@FACES
def test_a_model_whose_lazy_layers_have_no_shape_yet(face):
    run, model = Run(), nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 1))
    with refused(run, ValueError, "model=", "'0.weight'", "call the model on a batch", "make the optimizer after"):
        face(run, model=model, optimizer=SGD(model.parameters(), 0.1))
    model(DATA[0][0][None])
    face(run, model=model, optimizer=SGD(model.parameters(), 0.1))


@FACES
@pytest.mark.parametrize("optimizer", [3, "adam", SGD])
def test_an_optimizer_that_is_none(face, optimizer):
    run = Run()
    with refused(run, TypeError, f"optimizer={optimizer!r}", "torch.optim.Optimizer"):
        face(run, optimizer=optimizer)


@pytest.mark.parametrize("face", [find, probe])
@pytest.mark.parametrize("loader", [3, None, 2.5, lambda: iter(DATA)])
def test_a_loader_that_cannot_be_iterated(face, loader):
    run = Run()
    with refused(run, TypeError, "loader=", "iterable of batches", "DataLoader"):
        face(run, loader=loader)


@pytest.mark.parametrize(
    ("lr", "error", "words"),
    [
        (-1, ValueError, ["lr=-1", "at least 0"]),
        (float("nan"), ValueError, ["lr=nan", "finite"]),
        (float("inf"), ValueError, ["lr=inf", "finite"]),
        (torch.tensor(-0.5), ValueError, ["lr=tensor(-0.5000)", "at least 0"]),
        ("0.1", TypeError, ["lr='0.1'", "number"]),
        ([0.1, 0.2], TypeError, ["lr=[0.1, 0.2]", "number"]),
        (True, TypeError, ["lr=True", "number"]),
    ],
)
@pytest.mark.parametrize("given", [None, SGD, Adam])
def test_a_learning_rate_that_is_none(lr, error, words, given):
    run = Run()
    with refused(run, error, *words, "None: no training"):
        find(run, lr=lr, optimizer=given(run.model.parameters()) if given else None)


@pytest.mark.parametrize("returned", ["vector", "tuple", "dict", "float", "None"])
@pytest.mark.parametrize("argument", ["loss_func", "batch_loss"])
@FACES
def test_a_loss_that_is_no_scalar(face, argument, returned):
    made = {
        "vector": lambda loss: loss.flatten(), "tuple": lambda loss: (loss.mean(), loss), "float": lambda loss: 1.0,
        "dict": lambda loss: {"loss": loss.mean()}, "None": lambda loss: None,
    }[returned]  # fmt: skip
    losses = {
        "loss_func": lambda prediction, target: made((prediction - target).square()),
        "batch_loss": lambda model, batch: made((model(batch[0]) - batch[1]).square()),
    }
    chosen = {"loss_func": None, "batch_loss": None} | {argument: losses[argument]}
    run = Run()

    def reach() -> None:
        if face is load:
            next(batches)
        else:
            face(run, **chosen)

    batches = iter(load(run, overhead=0.01, **chosen)) if face is load else None
    got = {"vector": "shape (8,)" if face is not load else "shape (", "None": "NoneType"}.get(returned, returned)
    with refused(run, ValueError, f"{argument}=", "one number", f"got {got}", "return the mean over its samples"):
        reach()

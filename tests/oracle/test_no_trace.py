"""Measuring through checkpointed and compiled models, and what it leaves behind: nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from adaptbs.gradients.halves import HalfBatches
from adaptbs.model.batch_loss import BatchLoss
from benchmarks.common.per_example import PerExample

torch.manual_seed(5)
VECTORS, LABELS = torch.randn(6, 8), torch.arange(6) % 3


def loss_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


# ---------------------------------------------------------------------------------------- activation checkpointing


RUNS: list[bool] = []  # of a checkpointed block; a counter among its module's attributes would be set back


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.head, self.reentrant = nn.Linear(8, 8), nn.Linear(8, 3), reentrant
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 8), nn.LayerNorm(8))

    def block(self, x):
        RUNS.append(True)
        return self.inner(x)

    def forward(self, x):
        h = self.first(x)
        h = self.block(h) if self.reentrant is None else checkpoint(self.block, h, use_reentrant=self.reentrant)
        return self.head(h)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("source", [HalfBatches, PerExample])
def test_checkpoints_change_nothing(source, reentrant):
    norms, runs = [], []
    for how in (None, reentrant):
        torch.manual_seed(2)
        model = Checkpointed(how)
        RUNS.clear()
        norms.append(source(model, BatchLoss(batch_loss=loss_of)).measure((VECTORS, LABELS)))
        runs.append(len(RUNS))
    assert runs[1] > runs[0], "this checkpoint recomputes nothing"
    plain, checkpointed = ((float(n.small), float(n.large)) for n in norms)
    assert checkpointed == pytest.approx(plain, rel=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("source", [HalfBatches])
def test_a_reentrant_checkpoint_leaves_no_trace_in_grad(source, error):
    model, temperature = Checkpointed(True), nn.Parameter(torch.tensor(2.0))
    loss_of(model, (VECTORS, LABELS)).backward()
    model.head.bias.grad = None
    grads = [p.grad for p in model.parameters()]
    values = [None if g is None else g.clone() for g in grads]
    stepped = []
    handle = model.first.weight.register_post_accumulate_grad_hook(stepped.append)
    fail = False

    def interrupt(grad):
        if fail and error:
            raise error

    model.head.weight.register_hook(interrupt)

    def loss(model, batch):
        return loss_of(model, batch) * temperature  # a parameter that is not the model's

    measure = source(model, BatchLoss(batch_loss=loss)).measure
    measure((VECTORS, LABELS))
    fail = True
    if error:
        with pytest.raises(error):
            measure((VECTORS, LABELS))
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    assert all(g is None or torch.equal(g, v) for g, v in zip(grads, values, strict=True))
    assert temperature.grad is None
    assert not stepped
    fail = False
    loss_of(model, (VECTORS, LABELS)).backward()
    assert len(stepped) == 1, "the hook is in its place again"
    handle.remove()
    loss_of(model, (VECTORS, LABELS)).backward()
    assert len(stepped) == 1, "and its handle removes it"


# ------------------------------------------------------------------------------------------------- leaving no trace


class Failing(nn.Module):
    """Raises in its forward or its backward pass when told to, and keeps its intermediate results outside itself."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("late", None)
        self.told: list[str] = []
        self.kept: list = []

    def forward(self, x):
        self.late = self.one.weight.detach().clone()
        self.register_buffer("new", torch.ones(2))
        h = self.one(x)
        self.kept.append(h)
        if "forward" in self.told:
            raise ValueError("forward")
        out = self.two(torch.tanh(h))
        if "backward" in self.told and out.requires_grad:
            out.register_hook(self.fail)
        return out

    def fail(self, grad):
        raise ValueError("backward")


def state(model):
    """Every attribute of every module, dictionaries of hooks among them, and what hangs on its parameters."""
    modules = [{k: dict(v) if isinstance(v, dict) else v for k, v in vars(m).items()} for m in model.modules()]
    return modules, [(p._backward_hooks, p._post_accumulate_grad_hooks, p.grad) for p in model.parameters()]


@pytest.mark.parametrize("told", [[], ["forward"], ["backward"]])
@pytest.mark.parametrize("source", [HalfBatches])
def test_no_trace_is_left_on_the_model(source, told):
    model = Failing()
    source = source(model, BatchLoss(batch_loss=loss_of))
    before = state(model)
    for _ in range(2):
        source.measure((VECTORS, LABELS))
        model.told += told
        if told:
            with pytest.raises(ValueError, match=told[0]):
                source.measure((VECTORS, LABELS))
        model.told.clear()
        assert state(model) == before
    assert not any(h._backward_hooks for h in model.kept), "a hook on an intermediate result"


# --------------------------------------------------------------------------------------------------- compiled models


class Counting:
    """A compiler that counts what it is asked to compile, and compiles nothing."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 3))

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


def plain():
    torch.manual_seed(3)
    return Plain()


def in_place(model, backend):
    model.compile(backend=backend)
    return model, loss_of


def in_part(model, backend):
    model.head = torch.compile(model.head, backend=backend)
    return model, loss_of


def by_its_loss(model, backend):
    return model, torch.compile(loss_of, backend=backend)


COMPILED = {
    "whole": lambda model, backend: (torch.compile(model, backend=backend), loss_of),
    "in place": in_place,
    "in part": in_part,
    "with its loss": by_its_loss,
}


@pytest.mark.parametrize("how", COMPILED)
@pytest.mark.parametrize("source", [HalfBatches])
def test_a_compiled_model_is_measured_and_not_compiled_anew(source, how):
    torch._dynamo.reset()
    backend = Counting()
    model, loss = COMPILED[how](plain(), backend)
    batch = (VECTORS, LABELS)
    expected = source(plain(), BatchLoss(batch_loss=loss_of)).measure(batch)
    loss(model, batch).backward()
    compiled = backend.graphs
    assert compiled >= 1
    norms = source(model, BatchLoss(batch_loss=loss)).measure(batch)
    assert (float(norms.small), float(norms.large)) == (float(expected.small), float(expected.large))
    loss(model, batch).backward()
    assert backend.graphs == compiled
    # It still compiles what is new to it: a number of samples that no training step has had.
    loss(model, (VECTORS[:4], LABELS[:4])).backward()
    assert backend.graphs > compiled


def test_a_model_measured_before_its_first_step_compiles_as_if_it_had_not_been():
    graphs = []
    for measured in (False, True):
        torch._dynamo.reset()
        backend = Counting()
        model = torch.compile(plain(), backend=backend)
        if measured:
            assert HalfBatches(model, BatchLoss(batch_loss=loss_of)).measure((VECTORS, LABELS)) is not None
            assert backend.graphs == 0
        loss_of(model, (VECTORS, LABELS)).backward()
        graphs.append(backend.graphs)
    assert graphs == [1, 1]


def test_the_users_own_stance_comes_back():
    import torch._dynamo

    backend = Counting()
    model = torch.compile(plain(), backend=backend)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert HalfBatches(model, BatchLoss(batch_loss=loss_of)).measure((VECTORS, LABELS)) is not None
        with pytest.raises(RuntimeError, match="fail_on_recompile"):
            model(VECTORS)

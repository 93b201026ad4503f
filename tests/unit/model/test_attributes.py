"""Attributes that a pass changes on modules of the user's own classes are as before after it."""

from __future__ import annotations

import copy
import weakref
from collections import deque

import pytest
import torch
from torch import nn

from adaptbs.model.attributes import OF_TORCH, AttributeCopies
from adaptbs.model.preserve import Preserver, Snapshot, preserved
from adaptbs.model.values import LARGEST, LARGEST_TENSOR


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.calls, self._private, self.hidden = 0, 0, None
        self.seen, self.recent, self.by_name, self.kinds = [], deque([0], maxlen=2), {"first": 1}, {1}
        self.memory, self.place = torch.zeros(4, 2), torch.zeros(1)

    def forward(self, x):
        self.calls, self._private, self.hidden, self.place = self.calls + 1, self._private + 1, x, torch.ones(1)
        self.seen.append(x)
        self.recent.append(x)
        self.by_name["x"] = x
        self.kinds.add(len(x))
        self.memory[: len(x)] = x.detach()
        if not hasattr(self, "first"):
            self.first = x
        return self.linear(x)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(Counts(), nn.Identity())


def state(model: nn.Module) -> list[object]:
    own = model[0]
    return [
        own.calls, own._private, own.hidden is None, len(own.seen), len(own.recent), list(own.by_name), own.kinds,
        own.memory.sum().item(), own.place.item(), hasattr(own, "first"),
    ]  # fmt: skip


@pytest.mark.parametrize("passes", [1, 2])
def test_they_are_as_they_were(model, passes):
    before, objects = state(model), [model[0].seen, model[0].recent, model[0].memory, model[0].place]
    for _ in range(passes):
        with preserved(model):
            model(torch.ones(2, 2))
    assert state(model) == before
    after = [model[0].seen, model[0].recent, model[0].memory, model[0].place]
    assert all(one is other for one, other in zip(objects, after, strict=True))


def test_what_the_loop_has_changed_between_two_passes_stays(model):
    preserving = Preserver()
    for calls in range(1, 4):
        with preserving(model):
            model(torch.full((4, 2), -1.0))
        model(torch.full((2, 2), float(calls)))
        assert model[0].calls == len(model[0].seen) == calls
        assert model[0].memory.tolist() == [[calls, calls], [calls, calls], [0, 0], [0, 0]]


def test_the_copy_does_not_keep_activations_alive_between_two_passes(model):
    preserving = Preserver()
    model(torch.ones(2, 2))
    with preserving(model):
        model(torch.ones(2, 2))
    kept = [weakref.ref(model[0].place), weakref.ref(model[0].memory)]
    model(torch.ones(2, 2))
    model[0].memory = torch.zeros(4, 2)
    assert [each() for each in kept] == [None, None]


def test_large_containers_and_those_of_torch_are_left_alone(model):
    model[0].words = dict.fromkeys(range(LARGEST + 1), 0)
    with preserved(model):
        model[0].words[0] = 1
        model[1].note = 1
    assert model[0].words[0] == 1 and model[1].note == 1


def test_modes_and_parameters_are_no_attributes_of_theirs(model):
    with preserved(model):
        model[0].eval()
        model[0].linear = other = nn.Linear(2, 1)
    assert not model[0].training and model[0].linear is other


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError])
def test_nothing_of_a_step_is_held_after_a_pass(error):
    """A step's graph would be held to the next measurement, which may be many steps away."""
    model, preserving = Counts(), Preserver()

    def keep_output() -> weakref.ref[torch.Tensor]:
        output = model(torch.ones(2, 2))
        model.hidden, model.seen = output, [output]
        return weakref.ref(output)

    of_step = keep_output()
    try:
        with preserving(model):
            of_pass = keep_output()
            if error is not None:
                raise error
    except torch.OutOfMemoryError:
        pass
    assert of_pass() is None and of_step() is model.hidden
    model.hidden, model.seen = None, []
    assert of_step() is None


def test_a_snapshot_restores_them_as_often_as_it_is_asked(model):
    """As where memory runs out again with half of the batch."""
    before, snapshot = state(model), Snapshot(model)
    for _ in range(2):
        model(torch.ones(2, 2))
        snapshot.restore()
        assert state(model) == before


@pytest.mark.parametrize(("entries", "undone"), [(LARGEST_TENSOR, True), (LARGEST_TENSOR + 1, False)])
def test_of_an_object_that_is_no_module_large_tensors_are_not_copied(entries, undone):
    """A trainer may hold a whole data set, and a copy of that at each measurement could take all memory."""

    class Trainer:
        def __init__(self) -> None:
            self.data = torch.zeros(entries)

    trainer = Trainer()
    copies = AttributeCopies([trainer])
    copies.take()
    trainer.data[0] = 1
    copies.restore()
    assert bool(trainer.data[0] == 0) == undone


def test_of_a_module_large_tensors_are_copied_too():
    """A memory of earlier batches may be as large, and training goes on with what it holds."""
    module = Counts()
    module.memory = torch.zeros(LARGEST_TENSOR + 1)
    copies = AttributeCopies([module])
    copies.take()
    module.memory[0] = 1
    copies.restore()
    assert module.memory[0] == 0


def _renamed(own: Counts) -> None:
    own.other = own.calls
    del own.calls
    own.calls = own.other


def _of_the_same_number(own: Counts) -> None:
    vars(own).pop("hidden", None)
    own.shown = None


def _in_a_new_dictionary(own: Counts) -> None:
    own.__dict__ = {**vars(own), "calls": 7}


BETWEEN = {
    "nothing": lambda own: None,
    "a number": lambda own: setattr(own, "calls", own.calls + 1),
    "an equal number of another type": lambda own: setattr(own, "calls", float(own.calls)),
    "what is in a container": lambda own: own.seen.append([1]),
    "what is in a container of a container": lambda own: own.by_name.setdefault("inner", []).append(1),
    "a container": lambda own: setattr(own, "seen", [2]),
    "a number by a container": lambda own: setattr(own, "calls", [0]),
    "values of a tensor": lambda own: own.memory.add_(1),
    "a tensor": lambda own: setattr(own, "memory", torch.ones(4, 2)),
    "one more": lambda own: setattr(own, "more", {"a": 1}),
    "one less": lambda own: vars(own).pop("kinds", None),
    "order of names": _renamed,
    "a name by another": _of_the_same_number,
    "a dictionary of attributes": _in_a_new_dictionary,
}


@pytest.mark.parametrize("change", BETWEEN)
def test_what_has_been_changed_between_two_copies_is_what_is_restored(change, model):
    """Attributes are looked at again only where they are others, so all that makes them others has to be seen."""

    def own() -> dict[str, object]:
        of_it = {k: v for k, v in vars(model[0]).items() if k not in OF_TORCH}
        return {k: v.tolist() if isinstance(v, torch.Tensor) else copy.deepcopy(v) for k, v in of_it.items()}

    copies = AttributeCopies(model.modules())
    for _ in range(4):
        copies.take()
    for _ in range(2):
        BETWEEN[change](model[0])
        copies.take()
        before, identities = own(), {k: id(v) for k, v in vars(model[0]).items()}
        for name, value in list(vars(model[0]).items()):
            if name in OF_TORCH:
                continue
            if isinstance(value, torch.Tensor):
                value += 3
            elif isinstance(value, (list, deque)):
                value.append(5)
            elif isinstance(value, dict):
                value["x"] = [value.pop(next(iter(value)))]
            elif isinstance(value, set):
                value.clear()
            else:
                setattr(model[0], name, "changed")
        model[0].added = 1
        copies.restore()
        assert own() == before and {k: id(v) for k, v in vars(model[0]).items()} == identities
        assert {k: type(v) for k, v in own().items()} == {k: type(v) for k, v in before.items()}

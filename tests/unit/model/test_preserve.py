import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from adaptbs.model.loaders import preserved_loader
from adaptbs.model.modules import drawing_devices
from adaptbs.model.preserve import Preserver, RandomStates, Snapshot, preserved, preserved_weights


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))


def disturb(model: nn.Module) -> None:
    model(torch.randn(4, 1)).sum().backward()


def test_buffers_and_random_state_are_restored(model):
    buffers, rng = [b.clone() for b in model.buffers()], torch.get_rng_state()
    same_object = model[1].running_mean
    with preserved(model):
        disturb(model)
        assert model[1].num_batches_tracked == 1
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), rng)
    assert model[1].running_mean is same_object


def test_a_buffer_that_was_replaced_is_put_back(model):
    before = model[1].running_mean
    with preserved(model):
        model[1].running_mean = torch.ones(2)
    assert model[1].running_mean is before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_also_after_an_exception(model, error):
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(error), preserved_weights(model):
        disturb(model)
        torch.optim.SGD(model.parameters(), lr=1.0).step()
        raise error
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert model[1].num_batches_tracked == 0
    assert all(p.grad is None for p in model.parameters())


def test_gradients_already_there_are_kept(model):
    disturb(model)
    objects, values = [p.grad for p in model.parameters()], [p.grad.clone() for p in model.parameters()]
    with preserved_weights(model):
        disturb(model)  # adds up in place
    assert all(p.grad is g for p, g in zip(model.parameters(), objects, strict=True))
    assert all(torch.equal(p.grad, v) for p, v in zip(model.parameters(), values, strict=True))


def test_each_modules_mode_is_restored(model):
    model[1].eval()
    with preserved_weights(model):
        model.train()
    assert [m.training for m in model] == [True, False, True]


def test_all_three_random_generators_are_restored(model):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with preserved_weights(model):
        random.random(), np.random.rand(), torch.rand(1)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_a_model_on_the_cpu_draws_on_no_other_device(model):
    assert drawing_devices(model) == []


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_the_random_state_of_the_models_device_is_restored(monkeypatch, kind):
    class Elsewhere(nn.Linear):
        def parameters(self, recurse=True):
            return [SimpleNamespace(device=torch.device(kind, 0))]

    states = {torch.device(kind, 0): torch.tensor([1])}
    module = getattr(torch, kind)
    monkeypatch.setattr(module, "get_rng_state", lambda device: states[device])
    monkeypatch.setattr(module, "set_rng_state", lambda state, device: states.update({device: state}))
    with preserved(Elsewhere(2, 2)):
        states[torch.device(kind, 0)] = torch.tensor([2])
    assert states == {torch.device(kind, 0): torch.tensor([1])}


def test_a_graph_that_is_still_to_go_backward_does_not_notice():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.register_buffer("mask", torch.ones(3))
            self.register_buffer("spread", torch.ones(1).expand(3))  # cannot be written in place

        def forward(self, x):
            return self.layer(x) * self.mask * self.spread

    model = Masked()
    loss = model(torch.ones(2, 3)).sum()
    with preserved(model):
        pass
    loss.backward()
    assert model.layer.weight.grad is not None


def test_it_can_be_taken_anew_and_again():
    norms = nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(3)))
    norms.register_buffer("across", torch.arange(6.0).view(2, 3).t())  # not dense: no row of memory
    before = Snapshot(norms)
    for replaced in (False, True):
        if replaced:
            norms[1].running_mean = torch.full((2,), 7.0)  # looked up anew
        norms(torch.randn(8, 2))
        norms.across += 1
        before.take()
        wanted = {name: value.clone() for name, value in norms.state_dict().items()}
        held = dict(norms.named_buffers())
        norms(torch.randn(8, 2))
        norms.across += 1
        before.restore()
        assert all(torch.equal(value, wanted[name]) for name, value in norms.state_dict().items())
        assert all(buffer is held[name] for name, buffer in norms.named_buffers())


def test_the_slow_random_states_can_be_left_out():
    before = Snapshot(nn.Linear(1, 1))
    before.take(all_random=False)
    first = torch.rand(1), random.random(), np.random.rand()
    before.restore()
    again = torch.rand(1), random.random(), np.random.rand()
    assert first[0] == again[0] and first[1] != again[1] and first[2] != again[2]


@pytest.mark.parametrize(
    "draw", [random.random, np.random.rand, lambda: torch.rand(1)], ids=["random", "numpy", "torch"]
)
def test_a_draw_is_noticed_from_each_generator(model, draw):
    states = RandomStates(model)
    assert not states.moved
    draw()
    assert states.moved


def test_a_preserver_restores_at_every_pass_and_one_inside_another(model):
    keep = Preserver()
    for _ in range(3):
        before = {name: b.clone() for name, b in model.named_buffers()}
        with keep(model):
            disturb(model)
            between = {name: b.clone() for name, b in model.named_buffers()}
            with keep(model):
                disturb(model)
            assert all(torch.equal(b, between[name]) for name, b in model.named_buffers())
        assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
        model(torch.randn(4, 1))  # a training step in between


def test_a_preserver_sees_modules_that_come_and_other_models(model):
    keep = Preserver()
    with keep(model):
        disturb(model)
    model.append(nn.BatchNorm1d(1))
    other = nn.BatchNorm1d(1)
    for each in (model, other, model):
        with keep(each):
            each(torch.randn(4, 1))
        assert all(int(b) == 0 for name, b in each.named_buffers() if name.endswith("num_batches_tracked"))


@pytest.mark.parametrize("make", [lambda: nn.BatchNorm1d(1), lambda: nn.Linear(1, 1)])
def test_a_buffer_that_the_loop_has_added_since_the_last_pass_stays(make):
    model, keep = make(), Preserver()
    with keep(model):
        model(torch.randn(4, 1))
    model.register_buffer("cache", torch.ones(2))  # as a module does that makes its tables when it is first called
    with keep(model):
        model.cache += 1
        model.register_buffer("made_in_the_pass", torch.ones(1))
    assert model.cache.tolist() == [1, 1] and not hasattr(model, "made_in_the_pass")


def test_a_preserver_restores_after_an_exception_too(model):
    keep = Preserver()
    for _ in range(2):
        with pytest.raises(ValueError, match="on the way"), keep(model):
            disturb(model)
            raise ValueError("on the way")
        assert model[1].num_batches_tracked == 0


@pytest.mark.parametrize("where", ["the loader", "its sampler", "its batch sampler's sampler"])
def test_the_generators_of_a_loader_are_restored_wherever_they_are(where):
    data, generator = range(8), torch.Generator().manual_seed(0)
    order = RandomSampler(data, generator=generator)
    loader = {
        "the loader": lambda: DataLoader(data, 2, shuffle=True, generator=generator),
        "its sampler": lambda: DataLoader(data, 2, sampler=order),
        "its batch sampler's sampler": lambda: DataLoader(data, batch_sampler=BatchSampler(order, 2, False)),
    }[where]()
    before = generator.get_state()
    with preserved_loader(loader):
        list(loader)
    assert torch.equal(generator.get_state(), before)


def test_hooks_that_come_and_go_between_two_copies_are_noticed():
    """The functions that a pass calls are looked at again only where they are others."""
    model, seen = nn.Sequential(nn.Linear(1, 1), nn.ReLU()), list[int]()
    snapshot = Snapshot(model)
    for _ in range(3):
        snapshot.take()

    def counts(module, args, output):
        seen.append(1)

    for expected in (0, 1):
        handle = model[1].register_forward_hook(counts)
        snapshot.take()
        model(torch.ones(1, 1))
        snapshot.restore()
        assert len(seen) == expected, "the hook's list is as it was at the copy"
        handle.remove()
        snapshot.take()
        seen.append(2)
        snapshot.restore()
        assert len(seen) == expected + 1, "nobody calls it any more"

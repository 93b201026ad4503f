"""`probe_memory` on loaders of every kind."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import ChainDataset, DataLoader, Dataset, IterableDataset, TensorDataset

from adaptbs import AdaptiveDataLoader, probe_memory
from adaptbs.memory import probe
from tests.simulated_device import OnDevice, SimulatedMemory


@pytest.fixture
def model(monkeypatch) -> nn.Module:
    """A model of which 90 samples fit."""
    memory, model = SimulatedMemory(100_000), nn.Linear(4, 1)
    OnDevice(model, memory, 1000)
    monkeypatch.setattr(probe, "memory_of", lambda devices: memory)
    return model


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.ones(4), torch.ones(1))] * 64)


class WithoutLength(Stream):
    def __len__(self):
        raise NotImplementedError("a stream has no length")


class Batches(Dataset):
    """Each item is a batch."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return torch.ones(32, 4), torch.ones(32, 1)


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Stream(), 8), DataLoader(WithoutLength(), 8), DataLoader(ChainDataset([Stream(), Stream()]), 8),
        DataLoader(Batches(), None), [(torch.ones(0, 4), torch.ones(0, 1)), (torch.ones(8, 4), torch.ones(8, 1))],
    ],
)  # fmt: skip
def test_data_whose_length_in_samples_is_not_known_set_no_limit(model, loader):
    assert 88 <= probe_memory(model, mse_loss, loader).batch_size <= 90


def test_batches_without_a_sample_are_none(model):
    with pytest.raises(ValueError, match="gave no batch"):
        probe_memory(model, mse_loss, [(torch.ones(0, 4), torch.ones(0, 1))])


def test_a_number_of_numpys_is_answered_by_one_of_pythons(model):
    found = probe_memory(model, mse_loss, DataLoader(Stream(), 8), max_batch_size=np.int8(50))
    assert (found.batch_size, type(found.batch_size)) == (50, int)


def test_an_adaptive_loader_delivers_and_measures_what_it_would_have(model):
    def run(probed: bool):
        torch.manual_seed(0)
        for p in model.parameters():
            nn.init.zeros_(p)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        loader = AdaptiveDataLoader(
            TensorDataset(torch.randn(64, 4), torch.randn(64, 1)), 8, shuffle=True, model=model, optimizer=optimizer,
            epochs=1, loss_func=mse_loss, step_time=(1e-3, 1e-6),
        )  # fmt: skip
        if probed:
            probe_memory(model, mse_loss, loader, optimizer=optimizer)
        for x, y in loader:
            mse_loss(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.weight.tolist(), loader.history.to_dict()

    assert run(True) == run(False)


def test_weights_that_a_forward_pass_writes_are_put_back(monkeypatch):
    class Decaying(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                self.weight.mul_(0.9)
            return super().forward(x)

    monkeypatch.setattr(probe, "memory_of", lambda devices: SimulatedMemory(1e9))
    model = Decaying(4, 1)
    before = model.weight.detach().clone()
    probe_memory(model, mse_loss, DataLoader(Stream(), 8), max_batch_size=8)
    assert torch.equal(model.weight, before)


class Nested(torch.optim.SGD):
    """Keeps tensors in lists of its state, as Shampoo and SOAP do, and a number in one of its groups."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group.setdefault("scales", [torch.ones(1)])[0].mul_(0.5)
            for p in group["params"]:
                sums = self.state[p].setdefault("sums", [])
                sums[:] = sums or [torch.zeros_like(p)]
                sums.append(sums[0].add_(1).sum())
                p.sub_(sums[0])


def test_what_an_optimizer_keeps_in_lists_is_put_back(model):
    optimizer = Nested(model.parameters(), 0.1)
    optimizer.step()
    first, scale = optimizer.state[model.weight]["sums"][0], optimizer.param_groups[0]["scales"][0]
    probe_memory(model, mse_loss, DataLoader(Stream(), 8), optimizer=optimizer)
    assert first.eq(1).all() and scale.item() == 0.5
    assert [len(entry["sums"]) for entry in optimizer.state.values()] == [2, 2]

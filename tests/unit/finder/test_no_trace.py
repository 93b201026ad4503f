"""`bs_find` on models and loaders that change something of their own."""

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from adaptbs import bs_find
from adaptbs.finder import find as finder
from tests.simulated_device import SimulatedMemory

DATA = TensorDataset(torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), torch.ones(64, 1))


class Bounded(nn.Linear):
    """Puts its weights on new memory, but only once they are too large."""

    def forward(self, x):
        if self.weight.abs().max() > 0.6:
            self.weight.data = self.weight.data / 2
        return super().forward(x)


@pytest.mark.parametrize("seed", range(3))
def test_weights_that_a_pass_puts_on_other_memory_now_and_then(seed):
    torch.manual_seed(seed)
    model = Bounded(4, 1)
    before, memory = model.weight.detach().clone(), model.weight.data_ptr()
    bs_find(model, lambda made, wanted: mse_loss(made, 5 * wanted), DataLoader(DATA, 4), lr=0.1)
    assert torch.equal(model.weight, before) and model.weight.data_ptr() == memory


class Thawing(nn.Sequential):
    """Trains its first layer only after some passes."""

    def forward(self, x):
        self[0].requires_grad_(True)
        return super().forward(x)


def test_a_layer_that_a_pass_begins_to_train():
    model = Thawing(nn.Linear(4, 4), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    bs_find(model, mse_loss, DataLoader(DATA, 4))
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


def test_what_fits_is_tried_in_training_mode_whatever_the_mode_of_the_model(monkeypatch):
    monkeypatch.setattr(finder, "memory_of", lambda devices: SimulatedMemory(1e9))
    model, modes = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1)).eval(), []
    tried = finder.probe_batches

    def noted(model, *args, **arguments):
        modes.append(model[1].training)
        return tried(model, *args, **arguments)

    monkeypatch.setattr(finder, "probe_batches", noted)
    assert bs_find(model, mse_loss, DataLoader(DATA, 4)).fits
    assert modes == [True]
    assert not any(module.training for module in model.modules())


class Stream(IterableDataset):
    def __len__(self):
        raise NotImplementedError("a stream has no length")

    def __iter__(self):
        return iter(DATA)


def test_a_stream_whose_length_raises_and_numbers_larger_than_any_loader():
    found = bs_find(nn.Linear(4, 1), mse_loss, DataLoader(Stream(), 4), num_it=10**30, n_batch=10**30)
    assert found.samples == (64,)


def test_a_block_whose_pooled_squares_are_beyond_the_numbers_of_a_float_is_left_out():
    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.bias.fill_(8e18)  # each squared gradient is 8e37, so five of them are beyond float32
    batches = [(torch.ones(4, 4), torch.ones(4, 1))] * 10
    with pytest.raises(ValueError, match="nan or inf"):
        bs_find(model, lambda made, wanted: made.square().mean() / 4, batches, n_batch=5)


def test_a_function_that_suggests_no_number_is_named():
    found = bs_find(nn.Linear(4, 1), mse_loss, DataLoader(DATA, 4))

    def mine(found):
        return "64"

    with pytest.raises(TypeError, match="suggest_funcs: mine returned '64': it must return a batch size"):
        found.suggested_by(mine)
    assert found.suggested_by(lambda found: torch.tensor(64.0), lambda found: None).others[0][1] == 64.0

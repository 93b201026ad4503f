"""A loop that fetches the next batch before it trains on this one, as to copy it to the device meanwhile."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from adaptbs.model.watched_parameters import FEW
from tests.integration.training import FORCED, Numbered, adaptive, loss_of, network

DATA = Numbered(300)
TOTAL = 2 * 19


def one_ahead(batches):
    batches = iter(batches)
    this = next(batches)
    for following in batches:
        yield this
        this = following
    yield this


def trained(workers: int):
    """For each batch its indices, the stated learning rate and its step's; and what the schedule has come to."""
    model = network()
    optimizer = SGD(model.parameters(), 0.01)
    scheduler = OneCycleLR(optimizer, 0.01, total_steps=TOTAL)
    wanted = iter([16] * 4 + [32] * 4 + [64] * 99)
    loader = adaptive(
        DATA, model, optimizer, scheduler=scheduler, num_workers=workers, lr_scaling="linear",
        target=lambda *_: next(wanted), **FORCED,
    )  # fmt: skip
    torch.manual_seed(0)
    seen = []
    watch = optimizer.register_step_pre_hook(lambda *_: seen[-1].append(optimizer.param_groups[0]["lr"]))
    for _ in range(2):
        for batch in one_ahead(loader):
            seen.append([batch[2].tolist(), optimizer.param_groups[0]["lr"]])
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            scheduler.step()
    watch.remove()
    return seen, scheduler.last_epoch


@pytest.mark.parametrize("workers", [0, 2])
def test_each_batch_is_trained_at_its_own_learning_rate(workers):
    seen, came_to = trained(workers)
    assert came_to == TOTAL
    assert sorted(i for indices, *_ in seen for i in indices) == sorted([*range(300)] * 2)
    lengths = {16: 1, 32: 2, 64: 4}
    for indices, stated, used in seen:
        if len(indices) in lengths:  # (an epoch's last batches may be shorter)
            assert used / stated == pytest.approx(lengths[len(indices)])
    assert {len(indices) for indices, *_ in seen} >= {16, 32, 64}


def test_saved_inside_it_keeps_the_batch_that_was_fetched_ahead():
    def loader_of(model):
        return adaptive(DATA, model, SGD(model.parameters(), 0.01), shuffle=False, target=lambda *_: 16, **FORCED)

    model = network()
    loader = loader_of(model)
    for i, batch in enumerate(one_ahead(loader)):
        loss_of(model, batch).backward()
        if i == 4:
            state = loader.state_dict()
            break
    resumed = loader_of(network())
    resumed.load_state_dict(state)
    assert [i for batch in resumed for i in batch[2].tolist()] == list(range(5 * 16, 300))


class Deep(nn.Module):
    """200 layers, of which a part is trained."""

    def __init__(self, trained: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(200))
        self.head, self.other = nn.Linear(8, 1), nn.Linear(8, 1)
        for i, layer in enumerate(self.layers):
            layer.requires_grad_(trained == "all" or (trained == "end" and i > 195) or (trained == "one" and i == 77))
        self.other.requires_grad_(trained == "all")  # no loss comes by it
        self.head.requires_grad_(trained != "one")

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            if i % 3 != 1:  # as stochastic depth leaves layers out
                x = x + layer(x) / 100
        return self.head(x)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("trained", ["all", "end", "one"])
def test_a_few_parameters_are_enough_to_see_it(trained, groups):
    """They carry hooks while the loop holds the first batch. The batch counted is the one that it works on."""
    model = Deep(trained)
    parameters = list(model.parameters())
    third = -(-len(parameters) // groups)
    optimizer = SGD([{"params": parameters[i : i + third]} for i in range(0, len(parameters), third)], 1e-4)
    loader = adaptive(
        DATA, model, optimizer, shuffle=False, accumulation_steps=8, overhead=0, max_batch_size=16, epochs=1
    )
    for i, batch in enumerate(one_ahead(loader)):
        hooked = sum(bool(p._post_accumulate_grad_hooks) for p in parameters)
        assert 1 <= hooked <= FEW if i == 0 else not hooked
        loss_of(model, batch).backward()
        if i:
            assert loader.training_run.tracker.epoch_position == (i + 1) * 16
        if i == 4:
            break

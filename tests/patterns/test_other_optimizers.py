"""Optimizers that train the model beside the loader's, or in its place: their hyperparameters would not follow."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from adaptbs import AdaptiveDataLoader
from tests.integration.training import FORCED, Numbered, doubling

N, BATCH = 1024, 16
OTHER, GONE = "another optimizer trains the model", "optimizer is not stepped"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def loader_of(model, optimizer, **arguments) -> AdaptiveDataLoader:
    arguments = {"shuffle": True, "epochs": 4, "target": doubling(8), "lr_scaling": "linear", **FORCED} | arguments
    return AdaptiveDataLoader(Numbered(N), BATCH, model=model, optimizer=optimizer, **arguments)


def epoch(loader, model, *optimizers) -> None:
    for x, y, _ in loader:
        for optimizer in optimizers:
            optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()


def reason(loader) -> str:
    return loader.history.records[-1]["reason"]


@pytest.mark.parametrize("second", [SGD, Adam])
def test_two_optimizers_on_parts_of_one_model_hold_the_batch(second, caplog):
    """As Muon beside AdamW, SparseAdam beside Adam, or a body and a head."""
    model = network()
    body, head = SGD(model[0].parameters(), 0.01), second(model[2].parameters(), 0.01)
    loader = loader_of(model, body)
    for _ in range(2):
        epoch(loader, model, body, head)
    assert loader.batch_size == BATCH and reason(loader) == OTHER
    assert caplog.text.count("a group for each part") == 1 and len(caplog.records) == 1


def test_one_optimizer_with_a_group_for_each_part_grows(caplog):
    model = network()
    optimizer = SGD([{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.001}], 0.01)
    loader = loader_of(model, optimizer)
    epoch(loader, model, optimizer)
    assert loader.batch_size > BATCH and not caplog.text


def test_nothing_is_held_where_nothing_is_to_follow(caplog):
    model = network()
    body, head = SGD(model[0].parameters(), 0.01), SGD(model[2].parameters(), 0.01)
    loader = loader_of(model, body, lr_scaling="auto", transfer=())
    epoch(loader, model, body, head)
    assert loader.batch_size > BATCH and not caplog.text


def freeze(part: nn.Module) -> None:
    part.requires_grad_(False)


def leave(part: nn.Module) -> None:
    """Parameters that get gradients and are never stepped."""


@pytest.mark.parametrize("untrained", [freeze, leave])
def test_a_part_that_is_not_trained_is_no_doubt(untrained, caplog):
    model = network()
    untrained(model[2])
    optimizer = SGD(model[0].parameters(), 0.01)
    loader = loader_of(model, optimizer)
    epoch(loader, model, optimizer)
    assert loader.batch_size > BATCH and not caplog.text


def test_best_weights_that_are_loaded_between_batches_are_no_optimizer(caplog):
    model = network()
    optimizer = SGD(model[0].parameters(), 0.01)
    loader, best = loader_of(model, optimizer), network().state_dict()
    epoch(loader, model, optimizer)
    model.load_state_dict(best)
    epoch(loader, model, optimizer)
    assert loader.batch_size > BATCH and not caplog.text


def test_unfreezing_by_another_group_lets_the_batch_grow_on(caplog):
    model = network()
    freeze(model[0])
    optimizer = SGD(model[2].parameters(), 0.01)
    loader, used = loader_of(model, optimizer), []
    epoch(loader, model, optimizer)
    model[0].requires_grad_(True)
    optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.001})
    optimizer.register_step_pre_hook(lambda *_: used.append([group["lr"] for group in optimizer.param_groups]))
    epoch(loader, model, optimizer)
    k = loader.batch_size / BATCH
    assert used[-1] == pytest.approx([0.01 * k, 0.001 * k]) and not caplog.text


def test_a_second_optimizer_whose_parameters_go_to_the_first_sets_the_batch_free(caplog):
    model = network()
    body, head = SGD(model[0].parameters(), 0.01), SGD(model[2].parameters(), 0.01)
    loader = loader_of(model, body)
    epoch(loader, model, body, head)
    body.add_param_group({"params": list(model[2].parameters())})
    epoch(loader, model, body)
    assert loader.batch_size > BATCH and len(caplog.records) == 1


def test_a_new_optimizer_in_the_middle_of_a_run_is_noticed(caplog):
    """As `optimizer = Adam(model.parameters(), lr / 10)` after an unfreeze or a plateau."""
    model = network()
    first = SGD(model.parameters(), 0.01)
    loader = loader_of(model, first, target=lambda noise, size, progress: 32)
    epoch(loader, model, first)
    assert loader.batch_size == 32 and not caplog.text
    second = SGD(model.parameters(), 0.001)
    for _ in range(2):
        epoch(loader, model, second)
    assert reason(loader) == GONE and caplog.text.count("not called any more") == 1 and len(caplog.records) == 1
    epoch(loader, model, first)
    assert loader.training_run.controller.holds.reason is None


def test_a_new_optimizer_with_a_loader_of_its_own_begins_anew(caplog):
    model = network()
    for lr in (0.01, 0.001):
        optimizer, used = SGD(model.parameters(), lr), []
        loader = loader_of(model, optimizer, epochs=1)
        optimizer.register_step_pre_hook(lambda o, *_: used.append(o.param_groups[0]["lr"]))  # noqa: B023
        epoch(loader, model, optimizer)
        assert used[0] == lr and used[-1] > lr
    assert not caplog.text


def test_passes_without_steps_are_no_other_optimizer(caplog):
    """An accuracy on the training data, where gradients are left on."""
    model = network()
    optimizer = SGD(model.parameters(), 0.01)
    loader = loader_of(model, optimizer)
    for _ in range(2):
        epoch(loader, model, optimizer)
        for x, y, _ in loader:
            nn.functional.mse_loss(model(x), y)
    assert loader.batch_size > BATCH and OTHER not in reason(loader)
    assert caplog.text.count("has trained nothing, though an earlier one did, and is no part of the run") == 1
    assert len(caplog.records) == 1


def test_a_group_that_is_added_to_the_optimizer_of_a_deep_model_is_no_other_ones(caplog):
    """Of a deep model not all parameters are looked at in every epoch."""
    model = network().extend(nn.Identity() for _ in range(300))
    optimizer = SGD(model[0].parameters(), 0.01)
    late = lambda _, size, progress: size if progress < 0.5 else 2 * BATCH  # noqa: E731
    loader = loader_of(model, optimizer, epochs=6, target=late)
    for i in range(6):
        if i == 2:
            optimizer.add_param_group({"params": model[2].parameters()})
        epoch(loader, model, optimizer)
    assert loader.batch_size == 2 * BATCH and reason(loader) != OTHER
    assert "a group for each part" not in caplog.text


class Pair(nn.Module):
    """A generator and a discriminator, or an encoder and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_an_optimizer_of_another_model_in_the_loop_holds_the_batch(caplog):
    """It had gone on with its learning rate as it was, while the other's followed the batch."""
    pair = Pair()
    optimizer, other = SGD(pair.first.parameters(), 0.01), Adam(pair.second.parameters(), 0.01)
    loader = loader_of(pair.first, optimizer)
    for _ in range(3):
        epoch(loader, pair, optimizer, other)
        assert loader.batch_size == BATCH and reason(loader) == OTHER
    assert caplog.text.count("another optimizer (Adam)") == 1 == len(caplog.records)
    epoch(loader, pair, optimizer)
    epoch(loader, pair, optimizer)
    assert loader.training_run.controller.holds.reason is None


@pytest.mark.parametrize("beside", ["a loader each", "between epochs", "new ones", "within", "transfer=()"])
def test_these_are_none_of_another_model(beside, caplog):
    pair = Pair()
    optimizer, other = SGD(pair.first.parameters(), 0.01), SGD(pair.second.parameters(), 0.01)
    arguments = {"transfer": (), "lr_scaling": "auto"} if beside == "transfer=()" else {}
    loader = loader_of(pair.first, optimizer, **arguments)
    second = loader_of(pair.second, other) if beside == "a loader each" else None
    for _ in range(2):
        for batch in zip(loader, second, strict=False) if second else loader:
            x, y, _ = batch[0] if second else batch
            if beside == "new ones":  # as in the inner loop of meta-learning
                other = SGD(pair.second.parameters(), 0.01)
            elif beside == "within":
                other = SGD(pair.first.parameters(), 0.0)
            optimizer.zero_grad()
            nn.functional.mse_loss(pair(x), y).backward()
            optimizer.step()
            if beside != "between epochs":
                other.step()
        for _ in range(8 if beside == "between epochs" else 0):
            other.step()
    assert loader.training_run.controller.holds.reason is None and not caplog.text


def test_one_that_is_stepped_now_and_then_holds_it_too(caplog):
    """As a GAN's generator, at every fifth batch."""
    pair = Pair()
    optimizer, other = SGD(pair.first.parameters(), 0.01), SGD(pair.second.parameters(), 0.01)
    loader = loader_of(pair.first, optimizer, target=lambda _, size, progress: BATCH if progress < 0.25 else 4 * BATCH)
    for _ in range(2):
        for i, (x, y, _) in enumerate(loader):
            optimizer.zero_grad()
            nn.functional.mse_loss(pair(x), y).backward()
            optimizer.step()
            if i % 5 == 0:
                other.step()
    assert loader.batch_size == BATCH and caplog.text.count("another optimizer (SGD)") == 1


def test_hooks_for_it_are_left_nowhere():
    from torch.optim import optimizer as torchs

    model = network()
    optimizer = SGD(model.parameters(), 0.01)
    before = len(torchs._global_optimizer_post_hooks)
    epoch(loader_of(model, optimizer, shuffle=False), model, optimizer)
    for _ in loader_of(model, optimizer):
        break
    assert len(torchs._global_optimizer_post_hooks) == before

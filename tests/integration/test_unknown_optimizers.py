"""An optimizer that nobody knows: batch and hyperparameters are held, until the user says what follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.integration.training import FORCED, Numbered, adaptive, doubling, network, stock, train
from tests.own_optimizers import OwnLion, Warmed


def run(kind: Any, **arguments: Any) -> tuple[Any, Any, list[dict[str, Any]]]:
    """The run, its loader, and what the hyperparameters were inside each step."""
    model, inside = network(), []
    optimizer = kind(model.parameters(), lr=1e-3)
    loader = adaptive(Numbered(500), model, optimizer, **{"target": doubling(), **FORCED} | arguments)
    optimizer.register_step_pre_hook(
        lambda *_: inside.append({n: v for n, v in optimizer.param_groups[0].items() if n != "params"})
    )
    torch.manual_seed(1)
    return train(model, optimizer, loader, 2), loader, inside


def test_it_is_held_and_a_warning_says_so_once(caplog):
    made, loader, inside = run(Warmed)
    assert set(made.sizes) == {16, 500 % 16} and loader.batch_size == 16
    assert all(step == inside[0] for step in inside) and inside[0]["lr"] == 1e-3
    assert caplog.text.count("optimizer Warmed is not known, so batch and hyperparameters are held") == 1
    assert "transfer=" in caplog.text


def test_held_it_is_the_stock_run_to_the_bit():
    model = network()
    torch.manual_seed(1)
    expected = train(model, Warmed(model.parameters(), lr=1e-3), stock(Numbered(500)), 2)
    made, *_ = run(Warmed, overhead=0.3)
    assert torch.equal(made.weights, expected.weights)


def test_also_where_the_hyperparameters_are_those_of_another_batch():
    made, loader, inside = run(Warmed, base_batch_size=4)
    assert loader.training_run.scale()[:2] == (1, 1) and loader.history.to_dict()["lr_factor"][-1] == 1
    assert set(made.sizes) == {16, 500 % 16}
    assert all(step == inside[0] for step in inside) and inside[0]["lr"] == 1e-3
    model = network()
    torch.manual_seed(1)
    expected = train(model, Warmed(model.parameters(), lr=1e-3), stock(Numbered(500)), 2)
    assert torch.equal(made.weights, expected.weights), "BatchNorm's momentum is held too"


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        ({"transfer": ("lr",)}, {"lr"}),
        ({"transfer": ("lr", "betas")}, {"lr", "betas"}),
        ({"transfer": ()}, set()),
        ({"lr_scaling": "sqrt"}, {"lr"}),
    ],
)
def test_it_grows_as_soon_as_the_user_says_what_follows(arguments, changed, caplog):
    made, _, inside = run(Warmed, **arguments)
    assert max(made.sizes) == 256
    assert {name for name in inside[0] if any(step[name] != inside[0][name] for step in inside)} == changed
    assert "is not known, so" not in caplog.text


def test_a_known_one_of_the_users_own_grows_with_all_that_is_known_of_it(caplog):
    made, _, inside = run(OwnLion)
    assert max(made.sizes) == 256
    assert {name for name in inside[0] if any(step[name] != inside[0][name] for step in inside)} == {
        "lr", "betas", "weight_decay"
    }  # fmt: skip
    assert "is not known" not in caplog.text

"""What adaptbs does on the host at a step does not grow with the model, since there a GPU would wait for it."""

import statistics
import sys
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.gradients import backward
from tests.helpers.waits import PACKAGE


def deep(layers: int) -> nn.Module:
    return nn.Sequential(*[part for _ in range(layers) for part in (nn.Linear(8, 8), nn.Tanh())], nn.Linear(8, 1))


def loader_of(model: nn.Module, **arguments) -> tuple[AdaptiveDataLoader, torch.optim.Optimizer]:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    data = TensorDataset(torch.randn(512, 8), torch.randn(512, 1))
    return AdaptiveDataLoader(
        data, 16, model=model, optimizer=optimizer, loss_func=nn.MSELoss(), epochs=1, budget="epochs",
        step_time=(1e-3, 1e-6), overhead=0.02, max_batch_size=16, **arguments,
    ), optimizer  # fmt: skip


def calls_of_a_step(model: nn.Module, *, by_step: bool) -> Counter[str]:
    """Python's calls within adaptbs in a step of median work, which is neither measured nor decided at."""
    loader, optimizer = loader_of(model)
    steps, now = [], Counter()

    def seen(frame, event, _):
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE):
            now[f"{file.removeprefix(PACKAGE)} {frame.f_code.co_name}"] += 1

    sys.setprofile(seen)
    try:
        for x, y in loader:
            if by_step:
                loader.step((x, y))
            else:
                nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
            steps.append(now.copy())
            now.clear()
    finally:
        sys.setprofile(None)
    middle = statistics.median_low(sum(step.values()) for step in steps)
    return next(step for step in steps if sum(step.values()) == middle)


@pytest.mark.parametrize("by_step", [False, True], ids=["own steps", "loader.step"])
def test_a_step_of_a_deep_model_calls_no_more(by_step):
    assert calls_of_a_step(deep(48), by_step=by_step) == calls_of_a_step(deep(4), by_step=by_step)


@pytest.mark.parametrize("source", ["halves", "in_step"])
def test_a_graph_is_gone_over_where_a_batch_is_measured_by_halves_alone(source, monkeypatch):
    made, graph = [], backward._nodes

    def counted(loss):
        made.append(1)
        return graph(loss)

    monkeypatch.setattr(backward, "_nodes", counted)
    loader, _ = loader_of(deep(4), source=source)
    for batch in loader:
        loader.step(batch)
    measured = loader.history.to_dict()["event"].count("measurement")
    assert measured >= 1 and len(made) == (2 * measured if source == "halves" else 0)

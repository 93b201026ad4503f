"""Optimizers of other packages in a loop whose batch grows: they train, and outside of a step nothing has moved."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.integration.training import FORCED, Numbered, adaptive, doubling, loss_of, network

OPTIMIZERS = [
    ("lion_pytorch", "Lion", {"lr": 1e-4, "weight_decay": 0.01}),
    ("prodigyopt", "Prodigy", {"lr": 1.0}),
    ("schedulefree", "AdamWScheduleFree", {"lr": 1e-3, "weight_decay": 0.01}),
    ("optimi", "AdamW", {"lr": 1e-3}),
    ("optimi", "Lion", {"lr": 1e-4}),
    ("pytorch_optimizer", "SOAP", {"lr": 1e-3}),
    ("pytorch_optimizer", "Grams", {"lr": 1e-3}),
    ("pytorch_optimizer", "StableAdamW", {"lr": 1e-3}),
    ("bitsandbytes.optim", "AdamW8bit", {"lr": 1e-3}),
    ("torchao.optim", "AdamW8bit", {"lr": 1e-3}),
    ("muon", "SingleDeviceMuonWithAuxAdam", {}),
]


def made(package: str, name: str, model: Any, arguments: dict[str, Any]) -> Any:
    kind = getattr(pytest.importorskip(package), name)
    if package != "muon":
        return kind(model.parameters(), **arguments)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    return kind([{"params": matrices, "use_muon": True, "lr": 1e-3}, {"params": others, "use_muon": False}])


@pytest.mark.parametrize(("package", "name", "arguments"), OPTIMIZERS)
def test_it_trains_as_the_batch_grows(package, name, arguments, caplog):
    model = network()
    optimizer = made(package, name, model, arguments)
    data = Numbered(1500)
    loader = adaptive(data, model, optimizer, target=doubling(), **FORCED)
    if hasattr(optimizer, "train"):
        optimizer.train()
    watched = ("lr", "betas", "beta1", "beta2", "momentum", "eps", "weight_decay")
    found = [{key: group[key] for key in watched if key in group} for group in optimizer.param_groups]
    with torch.no_grad():
        before = float(loss_of(model.eval(), (data.x, data.y, None)))
    model.train()
    torch.manual_seed(1)
    for _ in range(4):
        for batch in loader:
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            for group, values in zip(optimizer.param_groups, found, strict=True):
                assert all(group[key] is value for key, value in values.items())
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    with torch.no_grad():
        after = float(loss_of(model.eval(), (data.x, data.y, None)))
    assert loader.batch_size == 256
    assert after < before
    assert "is not known" not in caplog.text

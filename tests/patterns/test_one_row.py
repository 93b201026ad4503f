"""What is trained sees one row of a batch's samples: prompt tuning, and batches that are packed into one sequence."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.optim import AdamW
from torch.utils.data import default_collate

from adaptbs import AdaptiveDataLoader
from adaptbs.run.holds import UNMEASURED
from tests.integration.training import Numbered

BATCH, EPOCHS = 16, 6


class Prompted(nn.Module):
    """A frozen model with a prompt that is trained. It is looked up once, and put before each sample."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.prompt = nn.Embedding(4, 8)
        self.frozen = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).requires_grad_(False)

    def forward(self, x):
        prompt = self.prompt(torch.arange(4)[None]).expand(len(x), -1, -1)
        return self.frozen(torch.cat([prompt, x[:, None]], 1).mean(1))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x):
        return self.layers(x)


def packed(items):
    """All samples, of three tokens each, as one row of a batch, as a collator without padding makes it."""
    return [each.repeat_interleave(3, 0)[None] for each in default_collate(items)]


def run(model, caplog, collate=None, **arguments) -> AdaptiveDataLoader:
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    loader = AdaptiveDataLoader(
        Numbered(400), batch_size=BATCH, shuffle=True, collate_fn=collate, model=model, optimizer=optimizer,
        epochs=EPOCHS, step_time=(4e-3, 1e-6), target="noise_scale", **arguments,
    )  # fmt: skip
    torch.manual_seed(1)
    for _ in range(EPOCHS):
        for x, y, _ in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
    assert len(caplog.records) <= 1
    return loader


def mse(model, batch):
    x, y, _ = batch
    return nn.functional.mse_loss(model(x), y)


def test_a_prompt_is_measured_by_halves_where_the_loss_is_known(caplog):
    loader = run(Prompted(), caplog, batch_loss=mse)
    assert loader.batch_size > BATCH
    assert {record.get("source") for record in loader.history if record["event"] == "measurement"} == {"halves"}
    assert not caplog.records


@pytest.mark.parametrize(
    ("model", "arguments", "says"),
    [
        (Prompted, {}, "one row of the batch's 16 samples.*loss_func="),
        (Plain, {"collate": packed}, "one row of the batch's 16 samples.*loss_func="),
        (Plain, {"collate": packed, "batch_loss": mse}, "one row of its 16 samples.*Let the dataset pack them"),
    ],
    ids=["a prompt", "packed", "packed, with its loss"],
)
def test_else_the_batch_is_held_with_the_reason(model, arguments, says, caplog):
    loader = run(model(), caplog, **arguments)
    assert loader.batch_size == BATCH
    assert list(loader.history)[-1]["reason"] == UNMEASURED
    (record,) = caplog.records
    assert re.search(says, record.getMessage()), record.getMessage()

"""The README's Python blocks, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tests.integration.fastai.learners import make_learner
from tests.integration.processes import Forked, run_on_ranks, run_script

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def surroundings() -> dict:
    """What the README takes for granted: a user's own data, model, optimizer and Learner."""
    torch.manual_seed(0)
    dataset = TensorDataset(torch.randn(1000, 8), torch.randn(1000, 1))
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=5 * 16)
    return {
        "dataset": dataset, "model": model, "optimizer": optimizer, "scheduler": scheduler,
        "loss_func": nn.functional.mse_loss, "learn": make_learner(), "epochs": 5,
        "loader": torch.utils.data.DataLoader(dataset, 16),
    }  # fmt: skip


def test_there_is_a_block_for_each_use():
    text = "\n".join(BLOCKS)
    for name in ("AdaptiveBatchSize()", "AdaptiveDataLoader(", "learn.bs_find()", "bs_find(model"):
        assert name in text


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), surroundings())


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
OF_TRAINERS = ("accelerate_", "lightning_", "transformers_")  # run by tests/integration/trainers


@pytest.mark.parametrize(
    "example", [path for path in EXAMPLES if not path.stem.startswith(OF_TRAINERS)], ids=lambda path: path.stem
)
def test_example_runs(example, tmp_path):
    run = run_on_ranks if example.stem == "ddp" else run_script
    code, out, err = Forked(tmp_path, run, example, "--samples", "1000").wait(120)
    assert code == 0, err
    assert "History(" in out


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_downloads_nothing(example):
    text = example.read_text()
    assert len(text.splitlines()) <= 80
    assert "torchvision" not in text and "download" not in text

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
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


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


def test_the_first_screen_has_what_a_newcomer_looks_for_in_this_order():
    first_screen = README[: README.index("\n## ")]
    looked_for = (
        "docs/images/demo.png", "`make demo` on ", "pip install", "cbs=AdaptiveBatchSize()", "learn.lr_find()",
        "learn.bs_find()", "AdaptiveDataLoader(",
    )  # fmt: skip
    places = [first_screen.index(name) for name in looked_for]
    assert places == sorted(places)


def test_the_table_has_the_rows_in_which_something_else_is_quicker():
    (table,) = re.findall(r"<!-- table quality_readme -->\n(.*?)<!-- end -->", README, re.DOTALL)
    rows = table.split("\n\n")[0].splitlines()
    assert {row.count("|") for row in rows} == {5}
    assert "a fixed 2,048 instead" in table and "on a full device" in table


def test_no_block_looks_for_a_batch_size_twice():
    assert max(block.count("bs_find()") for block in BLOCKS) == 1


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

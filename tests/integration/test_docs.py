"""Blocks of the documentation's pages, run as they stand; and that a table and the reasons shown are the real ones."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import partial
from itertools import cycle, product

import pytest
import torch

from adaptbs import AdaptiveDataLoader, GlobalBatch
from adaptbs.decision.policy import Situation, critical_over_simple, decide
from adaptbs.gradients import AccumulatedGradients
from adaptbs.memory.limit import within_memory
from adaptbs.report.trade_off import trade_off_at
from adaptbs.report.words import REASONS, in_words
from adaptbs.timing.step_time import StepTime
from adaptbs.types import NoiseScale
from tests.integration.test_readme import surroundings
from tests.snippets import ROOT, after, blocks

PAGES = (
    "answers.md", "fastai.md", "how_it_works.md", "index.md", "memory.md", "targets.md", "trade_off.md", "transfer.md",
    "your_loop.md",
)  # fmt: skip
BLOCKS = [
    pytest.param(page, block, id=f"{page}-{i}") for page in PAGES for i, block in enumerate(blocks(f"docs/{page}"))
]


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_block_runs(page, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, page, "exec"), surroundings())


def adaptive_surroundings() -> dict:
    """Those of README, with an adaptive loader."""
    names = surroundings()
    given = {name: names[name] for name in ("model", "optimizer", "scheduler")}
    names["loader"] = AdaptiveDataLoader(names["dataset"], 16, shuffle=True, **given)
    return names


def test_a_tutorial_runs_from_top_to_bottom():
    names = surroundings()
    for block in blocks("docs/plain_torch.md"):
        exec(compile(block, "plain_torch.md", "exec"), names)
    assert names["loader"].progress == 1
    assert "batch size" in repr(names["loader"]) and names["state"]["loader"]


def test_a_run_is_saved_and_goes_on_as_the_page_says(tmp_path):
    (block,) = blocks("docs/checkpoints.md")
    names = adaptive_surroundings()

    def train_on(x, y):
        names["loss_func"](names["model"](x), y).backward()
        names["optimizer"].step()
        names["optimizer"].zero_grad()
        names["scheduler"].step()

    exec(compile(block, "checkpoints.md", "exec"), names | {"path": tmp_path / "saved.pt", "train_on": train_on})
    assert torch.load(tmp_path / "saved.pt").keys() == {"model", "optimizer", "scheduler", "loader", "rng"}
    assert names["loader"].progress == 1


def test_a_model_is_compiled_for_every_size_beforehand(monkeypatch):
    names, sizes = surroundings(), []
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # a machine may have no C compiler
    names["model"].register_forward_hook(lambda module, given, made: sizes.append(len(given[0])))
    (block,) = blocks("docs/gpu.md")
    exec(compile(block, "gpu.md", "exec"), names)
    assert tuple(sizes) == names["loader"].batch_sizes


def test_a_loop_with_data_of_its_own():
    (diff,) = blocks("docs/big_training.md", "diff")
    names = surroundings()
    names |= {
        "GlobalBatch": GlobalBatch, "AccumulatedGradients": AccumulatedGradients, "total_samples": 2048,
        "clip_grad_norm_": torch.nn.utils.clip_grad_norm_, "seen": 0,
        "data": cycle(torch.utils.data.DataLoader(names["dataset"], 8)),
    }  # fmt: skip
    body = "x, y = next(data)\n(loss_func(model(x), y) / batch.accumulation_steps).backward()"
    exec(compile(after(diff, body), "big_training.md", "exec"), names)
    assert names["batch"].seen == 2048 and names["batch"].noise_scale.measurements == 8


def test_the_table_shown_is_what_is_printed():
    (shown,) = blocks("docs/trade_off.md", "text")
    made = trade_off_at(
        448.0, 192.0, 960.0, base_batch_size=64, largest=512, step_time=StepTime(0.064, 0.001), suggested=128,
        critical_over_simple=critical_over_simple(adaptive=False),
    )  # fmt: skip
    assert shown == repr(made) + "\n"


def situations() -> Iterator[Situation]:
    """All that matters to a decision, each way."""
    for cautious, measurements in ((1000.0, 9), (1e6, 9), (1000.0, 3), (0.0, 9), (None, 0)):
        high = cautious or math.inf  # nor is there an upper limit without a lower one
        noise_scale = None if cautious is None else NoiseScale(1.0, cautious, cautious, high, cautious, measurements)
        for size, most, time, early, coupled, news in product(
            (64, 1024), (128, 4096), (None, StepTime(0.0, 1.0)), (100, math.inf), (False, True), (0, 9)
        ):
            yield Situation(
                noise_scale=noise_scale, batch_size=size, reference=64, progress=0.5, step_time=time,
                max_batch_size=most, early_limit=early, coupled=coupled, new_measurements=news,
            )  # fmt: skip


def test_every_reason_of_a_decision_is_told():
    page = (ROOT / "docs" / "reasons.md").read_text()
    (table,) = re.findall(r"\| reason \| in words \| the batch \|\n\|---\|---\|---\|\n(.*?)\n\n", page, re.DOTALL)
    words = dict(re.findall(r"^\| `(.*?)` \| (.*?) \|", table, re.MULTILINE))
    told = set(words)
    assert words == {reason: in_words(reason) for reason in told}
    assert told == set(REASONS)
    targets = ("goodput", lambda noise_scale, size, progress: size)
    decisions = [decide(now, target) for now in situations() for target in targets]
    reached = {within_memory(decision, memory).reason for decision in decisions for memory in (1024, math.inf)}
    assert reached | {"start"} == told

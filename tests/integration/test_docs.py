"""Python blocks of the pages that have runnable ones, run as they stand; and that the layout shown is the real one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch

from adaptbs.decision.policy import Situation, decide
from adaptbs.memory.limit import within_memory
from adaptbs.report.trade_off import trade_off_at
from adaptbs.report.words import REASONS, in_words
from adaptbs.timing.step_time import StepTime
from adaptbs.types import NoiseScale
from tests.integration.test_readme import surroundings

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("answers.md", "how_it_works.md", "targets.md", "trade_off.md", "your_loop.md")
BLOCKS = [
    pytest.param(page, block, id=f"{page}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL))
]


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_block_runs(page, block):
    torch.manual_seed(0)
    exec(compile(block, page, "exec"), surroundings())


def test_a_tutorial_runs_from_top_to_bottom():
    torch.manual_seed(0)
    names = surroundings()
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "plain_torch.md").read_text(), re.DOTALL):
        exec(compile(block, "plain_torch.md", "exec"), names)
    assert names["loader"].progress == 1
    assert "batch size" in repr(names["loader"]) and names["state"]["loader"]


def test_the_table_shown_is_what_is_printed():
    (shown,) = re.findall(r"```text\n(.*?)\n```", (DOCS / "trade_off.md").read_text(), re.DOTALL)
    made = trade_off_at(
        448.0, 192.0, 960.0, base_batch_size=64, largest=512, step_time=StepTime(0.064, 0.001), suggested=128
    )
    assert shown == repr(made)


def situations() -> Iterator[Situation]:
    """All that matters to a decision, each way."""
    for cautious, measurements in ((1000.0, 9), (1e6, 9), (1000.0, 3), (0.0, 9), (None, 0)):
        limits = 3 * (cautious,)
        noise_scale = None if cautious is None else NoiseScale(1.0, cautious, *limits, measurements)
        for size, most, time, early, coupled, news in product(
            (64, 1024), (128, 4096), (None, StepTime(0.0, 1.0)), (100, math.inf), (False, True), (0, 9)
        ):
            yield Situation(
                noise_scale=noise_scale, batch_size=size, reference=64, progress=0.5, step_time=time,
                max_batch_size=most, early_limit=early, coupled=coupled, new_measurements=news,
            )  # fmt: skip


def test_every_reason_of_a_decision_is_told():
    page = (DOCS / "reasons.md").read_text()
    (table,) = re.findall(r"\| reason \| in words \| the batch \|\n\|---\|---\|---\|\n(.*?)\n\n", page, re.DOTALL)
    words = dict(re.findall(r"^\| `(.*?)` \| (.*?) \|", table, re.MULTILINE))
    told = set(words)
    assert words == {reason: in_words(reason) for reason in told}
    assert told == set(REASONS)
    targets = ("goodput", lambda noise_scale, size, progress: size)
    decisions = [decide(now, target) for now in situations() for target in targets]
    reached = {within_memory(decision, memory).reason for decision in decisions for memory in (1024, math.inf)}
    assert reached | {"start"} == told

"""Python blocks of the pages that have runnable ones, run as they stand; and that the layout shown is the real one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from adaptbs.step_time import StepTime
from adaptbs.trade_off import trade_off
from tests.integration.test_readme import surroundings

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("how_it_works.md", "targets.md", "trade_off.md")
BLOCKS = [
    pytest.param(page, block, id=f"{page}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL))
]


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_block_runs(page, block):
    torch.manual_seed(0)
    exec(compile(block, page, "exec"), surroundings())


def test_the_table_shown_is_what_is_printed():
    (shown,) = re.findall(r"```text\n(.*?)\n```", (DOCS / "trade_off.md").read_text(), re.DOTALL)
    made = trade_off(448.0, 192.0, 960.0, base_batch_size=64, largest=512, step_time=StepTime(0.064, 0.001))
    assert shown == repr(made)

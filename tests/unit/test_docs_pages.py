"""Every public name and argument has its place on one page of the documentation."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest

import adaptbs
from adaptbs.run.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def names_in_all(module: str) -> list[str]:
    """`__all__` of a module of the package, read from its source, because importing fastai takes long."""
    for node in ast.parse((ROOT / module).read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise AssertionError(f"{module} has no __all__")


PUBLIC = [
    *(f"adaptbs.{name}" for name in adaptbs.__all__),
    *(f"adaptbs.fastai.{name}" for name in names_in_all("adaptbs/fastai/__init__.py")),
    *(f"adaptbs.accelerate.{name}" for name in names_in_all("adaptbs/accelerate.py")),
    *(f"adaptbs.transformers.{name}" for name in names_in_all("adaptbs/transformers/__init__.py")),
    "adaptbs.targets",
]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_documented_on_one_page(name):
    pages = Counter(re.findall(r"^::: (\S+)$", "\n".join(p.read_text() for p in DOCS.rglob("*.md")), re.MULTILINE))
    assert pages[name] == 1


def test_every_shared_argument_is_in_one_of_the_two_tiers():
    page = (DOCS / "arguments.md").read_text()
    cells = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    told = re.findall(r"`(\w+)`", " ".join(cells))
    assert sorted(told) == sorted(field.name for field in fields(Settings))


def test_the_loaders_docstring_shows_the_shared_arguments():
    for field in fields(Settings):
        assert f"\n        {field.name}: " in (adaptbs.AdaptiveDataLoader.__doc__ or "")


def test_one_page_explains_the_estimate():
    formula = re.compile(r"tr\(Σ\) = (?!E)|E\|G_b\|² =")
    assert [page.name for page in DOCS.glob("*.md") if formula.search(page.read_text())] == ["estimate.md"]

"""Every example in a docstring of the package gives what it says."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITH_EXAMPLES = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "adaptbs").rglob("*.py") if ">>> " in path.read_text()
)


@pytest.mark.parametrize("path", WITH_EXAMPLES)
def test_examples_give_what_they_say(path):
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    found = doctest.testmod(module)
    assert found.attempted and not found.failed

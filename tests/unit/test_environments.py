"""The two environments that make sets up: what they pin, and what they have apart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAINERS = ("accelerate", "lightning", "transformers")


def pinned(name: str) -> list[str]:
    lines = (ROOT / name).read_text().splitlines()
    return [re.split("[=; ]", line)[0] for line in lines if "==" in line and not line.startswith("#")]


def test_a_package_is_pinned_in_one_file():
    assert not set(pinned("constraints.txt")) & set(pinned("constraints-trainers.txt"))
    assert "-c constraints.txt" in (ROOT / "constraints-trainers.txt").read_text().splitlines()


def test_a_release_has_one_version():
    said = re.search(r'^__version__ = "(.*)"$', (ROOT / "adaptbs" / "__init__.py").read_text(), re.MULTILINE).group(1)
    assert f"\nversion: {said}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == said


@pytest.mark.parametrize("trainer", TRAINERS)
def test_each_trainer_is_an_extra_pinned_in_the_second_environment(trainer):
    extras = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    assert re.search(rf'^{trainer} = \["{trainer}', extras, re.MULTILINE)
    assert trainer not in re.search(r"^all = (.*)$", extras, re.MULTILINE).group(1)
    assert trainer in pinned("constraints-trainers.txt") and trainer not in pinned("constraints.txt")
    assert f"[{','.join(TRAINERS)}]" in (ROOT / "Makefile").read_text()


def test_every_test_of_a_trainer_can_be_collected_without_it():
    """In the main environment it is skipped with a reason, which says how to run it."""
    for path in (ROOT / "tests" / "integration" / "trainers").glob("test_*.py"):
        source = path.read_text()
        assert re.search(r"(importorskip|pytest\.skip)\((.*\n?)*?.*make trainers", source), path.name

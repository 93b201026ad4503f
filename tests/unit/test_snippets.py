"""No block of code in README or docs goes unrun, and what they and CONTRIBUTING say to type is there."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest

from tests.snippets import ROOT, RUN_BY, after, blocks, fenced, pages

TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def named_in(table: str) -> set[str]:
    """The names in a table of pyproject.toml, without tomllib, which Python 3.10 lacks."""
    text = (ROOT / "pyproject.toml").read_text().split(f"[{table}]\n")[1].split("\n[")[0]
    return set(re.findall(r"^([\w-]+) = ", text, re.MULTILINE))


@pytest.mark.parametrize("page", pages())
def test_every_block_is_run(page):
    unrun = {language or "no language" for language, _ in fenced(page) if (page, language) not in RUN_BY}
    assert not unrun, f"{page} has blocks that nothing runs: {unrun}; see tests/snippets.py"
    assert (ROOT / page).read_text().count("```") == 2 * len(fenced(page))


@pytest.mark.parametrize(("page", "language"), RUN_BY)
def test_what_is_said_to_run_a_page_names_it(page, language):
    assert blocks(page, language)
    text = (ROOT / RUN_BY[page, language]).read_text()
    assert re.search(rf"\b{re.escape(page.removeprefix('docs/'))}", text)


def test_a_block_in_a_tab_and_a_new_one_are_seen():
    assert len(blocks("docs/index.md")) == 3
    assert after("+a = 1\n-b = 2\n ...\n for x in y:\n     ...  # a step\n", "f(x)") == "a = 1\nfor x in y:\n    f(x)"


@pytest.mark.parametrize("page", pages())
def test_what_to_type_is_there(page):
    """For README.md, docs/index.md and whoever else says `make`, `pip install` or `python -m`."""
    text = (ROOT / page).read_text()
    code = "\n".join(
        [*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^    (\S.*)$", text, re.MULTILINE), *blocks(page, "bash")]
    )
    assert set(re.findall(r"^make ([a-z]+)", code, re.MULTILINE)) <= TARGETS
    for extras in re.findall(r"pip install .*?(?:adaptbs|\.)\[([\w,]+)\]", code):
        assert set(extras.split(",")) <= named_in("project.optional-dependencies")
    for group in re.findall(r"--group (\w+)", code):
        assert group in named_in("dependency-groups")
    for module in re.findall(r"python -m (adaptbs|benchmarks)\b", code):
        assert find_spec(module)
    for command in re.findall(r"python -m adaptbs (\w+)", code):
        assert command in ("demo", "doctor")


@pytest.mark.parametrize("page", pages())
def test_every_file_that_a_page_names_is_there(page):
    text = (ROOT / page).read_text()
    named = set(re.findall(r"`((?:tests|examples|adaptbs|docs)/[\w/.]+\.\w+)`", text))
    named |= {
        f"adaptbs/{path}" for path in re.findall(r"`((?:gradients|decision|run|loader|memory|timing)/\w+\.py)`", text)
    }
    assert not [path for path in named if not (ROOT / path).exists()]
    bare = set(re.findall(r"`(test_\w+\.py)`", text))
    assert bare <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}

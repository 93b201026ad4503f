"""The code blocks of README and docs, and the test that runs those of each page.

A block of a page that is not in `RUN_BY` fails tests/unit/test_snippets.py. A test that is named there runs every block
of its page, so a new one needs nothing but to work.
"""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent, indent

ROOT = Path(__file__).parents[1]
FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)

DOCS = "tests/integration/test_docs.py"
RANKS = "tests/integration/test_docs_ranks.py"
TRAINERS = "tests/integration/trainers/test_trainer_pages.py"

#: By page and language.
RUN_BY = {
    ("README.md", "bash"): "tests/unit/test_snippets.py",
    ("README.md", "python"): "tests/integration/test_readme.py",
    ("docs/accelerate.md", "diff"): TRAINERS,
    ("docs/answers.md", "python"): DOCS,
    ("docs/big_training.md", "diff"): DOCS,
    ("docs/big_training.md", "python"): RANKS,
    ("docs/checkpoints.md", "python"): DOCS,
    ("docs/fastai.md", "python"): DOCS,
    ("docs/gpu.md", "python"): DOCS,
    ("docs/how_it_works.md", "python"): DOCS,
    ("docs/index.md", "bash"): "tests/unit/test_snippets.py",
    ("docs/index.md", "python"): DOCS,
    ("docs/lightning.md", "diff"): TRAINERS,
    ("docs/logging.md", "python"): "tests/integration/test_logging.py",
    ("docs/memory.md", "python"): DOCS,
    ("docs/plain_torch.md", "python"): DOCS,
    ("docs/ranks.md", "python"): RANKS,
    ("docs/targets.md", "python"): DOCS,
    ("docs/trade_off.md", "python"): DOCS,
    ("docs/trade_off.md", "text"): DOCS,
    ("docs/transfer.md", "python"): DOCS,
    ("docs/transformers.md", "diff"): TRAINERS,
    ("docs/transformers.md", "python"): TRAINERS,
    ("docs/your_loop.md", "python"): DOCS,
}


def pages() -> list[str]:
    """Every page that a reader may copy from, relative to the root."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")]
    return sorted(page.relative_to(ROOT).as_posix() for page in found)


def fenced(page: str) -> list[tuple[str, str]]:
    """The blocks of a page: language and text, also of those that stand in a tab."""
    return [(language, dedent(text)) for _, language, text in FENCED.findall((ROOT / page).read_text())]


def blocks(page: str, language: str = "python") -> list[str]:
    """The blocks of a page in one language."""
    return [text for its, text in fenced(page) if its == language]


def after(diff: str, body: str = "") -> str:
    """The script that a diff leads to, with `body` for the `...` inside of it."""
    lines = [line[1:] for line in diff.splitlines() if not line.startswith("-")]
    script = []
    for line in lines:
        spaces, said = re.match(r"( *)(.*)", line).groups()  # type: ignore[union-attr]
        script.append(indent(body, spaces) if said.startswith("...") and spaces else line)
    return "\n".join(line for line in script if line != "...")

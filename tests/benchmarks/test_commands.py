"""Every command and file of the benchmarks that a page names is there, and the README lists all of them."""

import os
import re
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.quality.parts import PARTS
from benchmarks.tables import PAGES, ROOT

BENCHMARKS = ROOT / "benchmarks"
README = BENCHMARKS / "README.md"
NOT_MADE_YET = {"benchmarks/results/gpu.json"}
TEXTS = [*PAGES, README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(BENCHMARKS.rglob("*.py"))]


def program(module: str) -> Path | None:
    """The file that `python -m` runs."""
    spec = find_spec(module)
    if spec is not None and spec.submodule_search_locations:
        spec = find_spec(f"{module}.__main__")
    return Path(spec.origin) if spec is not None and spec.origin else None


def commands(text: str) -> set[str]:
    return set(re.findall(r"python -m (benchmarks(?:\.[a-z_]+)*)(?![\w.]*[A-Z])", text))


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page):
    text = page.read_text()
    for module in commands(text):
        path = program(module)
        assert path is not None and 'if __name__ == "__main__":' in path.read_text(), module
    named = set(re.findall(r"benchmarks/[\w/.]+\.(?:py|jsonl?)\b", text)) - NOT_MADE_YET
    assert not [name for name in named if not (ROOT / name).exists()]
    assert "python benchmarks/" not in text
    for parts in re.findall(r"python -m benchmarks\.quality .*?--only ([a-z_0-9 ]+)", text):
        assert set(parts.split()) <= set(PARTS)


def test_the_readme_lists_every_program_and_every_result():
    text = README.read_text()
    programs = {program(module) for module in commands(text)}
    assert programs == {path for path in BENCHMARKS.rglob("*.py") if '__name__ == "__main__"' in path.read_text()}
    results = {path.relative_to(BENCHMARKS).as_posix() for path in (BENCHMARKS / "results").rglob("*.json*")}
    assert results == set(re.findall(r"\((results/[\w/.]+)\)", text))


@pytest.mark.slow
def test_the_gpu_benchmark_needs_no_installed_adaptbs():
    # -S leaves out what site adds: .pth files, by which an editable adaptbs is found.
    packages = os.pathsep.join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    command = [sys.executable, "-S", "-m", "benchmarks.gpu", "--help"]
    environment = {**os.environ, "PYTHONPATH": packages}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--only" in done.stdout

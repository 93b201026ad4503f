"""A machine that has a few packages and a copy of the repository, and nothing else: adaptbs is not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
COPIED = ("adaptbs", "benchmarks", "tests")  # what the GPU benchmark needs of the repository, beside pyproject.toml


def needed(names: list[str]) -> set[str]:
    """These packages and all that they require here."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:  # of another platform, or optional
            continue
        found.add(name)
        required = map(Requirement, requires)
        todo += [r.name for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


class BareMachine:
    """An environment of its own, whose packages are links to those installed here, and a copy of the repository.

    Args:
        folder: an empty one.
        packages: that the environment has, with what they require.
    """

    def __init__(self, folder: Path, packages: list[str]) -> None:
        self._environment, self.repository = folder / "environment", folder / "repository"
        venv.create(self._environment, symlinks=True)
        (site,) = self._environment.glob("lib/python*/site-packages")
        for name in needed(packages):
            own = distribution(name)
            for top in {Path(file).parts[0] for file in own.files or []} - {"..", "__pycache__"}:
                if not (site / top).exists():
                    (site / top).symlink_to(Path(str(own.locate_file(top))))
        for name in COPIED:
            shutil.copytree(ROOT / name, self.repository / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", self.repository)

    def run(self, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run its Python, by default in the root of the repository's copy."""
        environment = {"PATH": os.defpath, "HOME": str(self._environment), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [self._environment / "bin" / "python", *arguments], cwd=folder or self.repository, env=environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

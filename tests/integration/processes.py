"""Processes forked from a server that has imported the large packages, which takes a fresh interpreter seconds.

The server only imports. A process forked from it has run nothing else, so it is as good as a fresh one.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

ROOT = Path(__file__).parents[2]
IMPORTED = (
    __name__, "tests.integration.stoppable", "tests.integration.rank_programs", "fastai.basics", "sklearn.datasets",
    "torch._dynamo", "scipy.special",  # else imported by each process, where it first makes an optimizer or a loader
)  # fmt: skip


@cache
def server() -> ForkServerContext:
    """Start the server. Python has one for all of a process, so all tests share what it imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*IMPORTED])
    with pytest.MonkeyPatch.context() as patch:  # the server does not get our sys.path
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        forkserver.ensure_running()
    return context


class Forked:
    """A process that works in a folder, and writes to the files stdout and stderr there."""

    def __init__(self, folder: Path, target: Callable[..., Any], *arguments: Any) -> None:
        self.folder = folder
        self.process = server().Process(target=_run_in, args=(folder, target, arguments))
        self.process.start()

    def wait(self, timeout: float) -> tuple[int | None, str, str]:
        """Exit code, standard output and standard error; kills the process after `timeout` seconds."""
        self.process.join(timeout)
        self.process.kill()
        self.process.join()
        return self.process.exitcode, (self.folder / "stdout").read_text(), (self.folder / "stderr").read_text()


def _run_in(folder: Path, target: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    multiprocessing.set_start_method(None, force=True)  # forked by a server, it would start a server for its workers
    os.chdir(folder)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    target(*arguments)


def run_script(path: Path, *arguments: str) -> None:
    """Run a file as `python path arguments` does."""
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def run_on_ranks(path: Path, *arguments: str) -> None:
    """Run a file as `torchrun --standalone --nproc-per-node 2 path arguments` does, but for forking the ranks."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        start_method="fork", max_restarts=0,
    )  # fmt: skip
    elastic_launch(config, run_script)(path, *arguments)

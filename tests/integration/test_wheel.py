"""The wheel: built as a release builds it, and run from where it was unpacked, without the clone and without fastai."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

import adaptbs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    constraints = ROOT / "constraints.txt"
    command = [
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--build-constraint", str(constraints),
        "--wheel-dir", str(out), str(ROOT),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "No matching distribution found for hatchling" in done.stderr:  # without a network
        pytest.skip("hatchling cannot be fetched here")
    assert done.returncode == 0, done.stderr
    (made,) = out.glob("*.whl")
    return made


@pytest.mark.slow
def test_it_holds_the_package_and_says_what_it_needs(wheel):
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        said = Parser().parsestr(archive.read(metadata).decode())
    sources = [path for path in (ROOT / "adaptbs").rglob("*") if path.suffix == ".py" or path.name == "py.typed"]
    assert names == {path.relative_to(ROOT).as_posix() for path in sources}
    assert (said["Version"], said["Requires-Python"]) == (adaptbs.__version__, ">=3.10")
    needed = [line for line in said.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(needed) == ["numpy", "scipy", "torch>=2.6"]
    assert {"fastai", "plot", "demo", "accelerate", "lightning", "transformers"} <= set(said.get_all("Provides-Extra"))


@pytest.mark.slow
def test_it_runs_without_the_clone_and_without_fastai(wheel, tmp_path):
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    # -S leaves out what site adds: .pth files, by which the editable adaptbs would be found.
    packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "installed"), *packages])}
    program = """
import sys
sys.modules.update(dict.fromkeys(["fastai", "matplotlib"]))  # which makes importing them an ImportError
import adaptbs
from adaptbs.__main__ import main
print(adaptbs.__file__)
sys.exit(main(["doctor"]))
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "installed")) and f"adaptbs     {adaptbs.__version__}" in done.stdout

"""The one-way street (docs: CONTRIBUTING.md), what importing costs, and the names that others rely on."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import adaptbs

PACKAGE = Path(adaptbs.__file__).parent

# A module imports only from those before it. A new module takes its place here.
LAYERS = (
    "types",
    "plot",
    "ranks",
    "step_time",
    "noise_scale",
    "measurements",
    "lr_scaling",
    "transfer",
    "bias_correction",
    "hyperparameters",
    "schedule",
    "policy",
    "progress",
    "settings",
    "targets",
    "trade_off",
    "pace",
    "duty_cycle",
    "clock",
    "timekeeper",
    "left_as_found",
    "gradients",
    "gradients.batches",
    "gradients.batch_loss",
    "gradients.loss_scale",
    "gradients.backward",
    "gradients.mean_gradient",
    "gradients.coupling",
    "gradients.views",
    "gradients.micro_batches",
    "gradients.accumulated",
    "gradients.per_example",
    "gradients.measurer",
    "gradients.ranks",
    "step_timer",
    "memory_search",
    "memory",
    "memory_cap",
    "out_of_memory",
    "probe",
    "shared_order",
    "sampler",
    "stream",
    "feed",
    "delivery",
    "history",
    "scaled_step",
    "controller",
    "measuring",
    "rank_measuring",
    "report",
    "loader_arguments",
    "loader_step",
    "loop_advice",
    "loader_run",
    "loader",
    "suggestion",
    "finder",
    "",  # the package itself: adaptbs/__init__.py
    "fastai_batches",
    "fastai_callback", "fastai_columns", "fastai_pictures",
    "fastai_hyperparameters",
    "fastai_finder",
    "fastai_step",
    "fastai",
    "demo_flights",
    "demo_figure",
    "demo",
    "__main__",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(module: str, source: str, is_package: bool = False) -> Iterator[tuple[str, bool]]:
    """(module of ours, whether within a function), for each import that runs; names in a package are modules first."""

    def targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "adaptbs"]
            yield from (name.removeprefix("adaptbs").removeprefix(".") for name in names)
            return
        if node.level:
            here = module.split(".") if is_package else module.split(".")[:-1]
            base = [*here[: len(here) - node.level + 1], *(node.module or "").split(".")]
        elif (node.module or "").split(".")[0] == "adaptbs":
            base = node.module.split(".")[1:]
        else:
            return
        prefix = ".".join(filter(None, base))
        for alias in node.names:
            full = f"{prefix}.{alias.name}".lstrip(".")
            yield full if full in FILES else prefix

    def walk(node: ast.AST, lazy: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                yield from ((target, lazy) for target in targets(child))
            yield from walk(child, lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    yield from walk(ast.parse(source), False)


def upward(module: str, source: str, is_package: bool = False) -> list[str]:
    """The imports that break the rule."""
    before = LAYERS[: LAYERS.index(module)]
    return [target for target, _ in imports(module, source, is_package) if target not in before]


def test_every_file_has_its_place():
    assert set(FILES) == set(LAYERS)
    assert len(LAYERS) == len(set(LAYERS))


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_module_imports_only_from_the_layers_before_it(module):
    path = FILES[module]
    assert upward(module, path.read_text(encoding="utf-8"), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source", "broken"),
    [
        ("policy", "from .types import Decision", []),
        ("policy", "from . import step_time, controller", ["controller"]),
        ("policy", "from .controller import Controller", ["controller"]),
        ("policy", "import adaptbs.controller", ["controller"]),
        ("policy", "from adaptbs.controller import Controller", ["controller"]),
        ("policy", "from adaptbs import NoiseScale", [""]),
        ("policy", "if TYPE_CHECKING:\n    from .controller import Controller", []),
        ("policy", "def f():\n    from .controller import Controller", ["controller"]),
        ("policy", "def f():\n    from .plot import plot_history", []),
        ("gradients.batches", "from ..left_as_found import left_as_found", []),
        ("gradients.batches", "from .micro_batches import GradientPool", ["gradients.micro_batches"]),
        ("gradients.batches", "from . import micro_batches", ["gradients.micro_batches"]),
        ("gradients.batches", "from ..controller import Controller", ["controller"]),
    ],
)
def test_the_rule_itself(module, source, broken):
    assert upward(module, source) == broken


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


WHAT_IMPORTING_LOADS = """
import sys
import torch, torch.optim, torch.utils.data
before = set(sys.modules)
import adaptbs
print(*sorted(name for name in set(sys.modules) - before if name.split(".")[0] != "adaptbs"))
"""
LOADED = 12  # modules of others beyond those that `import torch` loads; 5 at torch 2.13


def test_importing_loads_little_and_no_extra():
    loaded = run(WHAT_IMPORTING_LOADS).split()
    packages = {name.split(".")[0] for name in loaded}
    assert not {"fastai", "matplotlib", "scipy", "pandas", "IPython"} & packages
    assert len(loaded) <= LOADED, loaded


def test_the_public_names():
    values = ["BatchSizeSuggestion", "MemoryProbe", "NoiseScale", "SquaredNorms"]
    assert sorted(adaptbs.__all__) == sorted(["AdaptiveDataLoader", *values, "bs_find", "one_cycle", "probe_memory"])
    assert all(callable(getattr(adaptbs, name)) for name in adaptbs.__all__)


def test_the_package_is_marked_as_typed():
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_file_holds_one_idea(module):
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= 300

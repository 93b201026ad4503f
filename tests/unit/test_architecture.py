"""The house (docs: CONTRIBUTING.md): the order of its folders, their faces, what importing loads, the public names."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import adaptbs

PACKAGE = Path(adaptbs.__file__).parent

# A folder imports only from those before it, and only through their __init__.py. "" is the package's own face.
ORDER = (
    "types", "checks", "ranks",
    "model", "noise_scale", "timing", "hyperparameters", "sampling", "gradients", "decision", "targets", "report",
    "memory", "run", "finder", "loader",
    "global_batch",
    "",
    "accelerate", "lightning", "transformers",
    "fastai", "demo", "doctor", "__main__",
)  # fmt: skip

# Libraries that are each imported in one place alone: by the adapter of that name, or by what is built on it.
ALONE = {"fastai": {"fastai", "demo", "doctor"}, "accelerate": {"accelerate"}, "lightning": {"lightning"},
         "pytorch_lightning": {"lightning"},
         "transformers": {"transformers"}}  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(module: str, source: str, is_face: bool = False) -> Iterator[str]:
    """Our modules that a file imports: at its top, within functions, and for type checkers alone."""
    here = module.split(".") if is_face else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "adaptbs"]
            yield from (name.removeprefix("adaptbs").removeprefix(".") for name in names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = [*here[: len(here) - node.level + 1], *(node.module or "").split(".")]
            elif (node.module or "").split(".")[0] == "adaptbs":
                base = node.module.split(".")[1:]
            else:
                continue
            origin = ".".join(filter(None, base))
            for alias in node.names:
                full = f"{origin}.{alias.name}".lstrip(".")
                yield full if full in FILES else origin


def place(module: str) -> str:
    return module.split(".")[0]


def broken(module: str, source: str, is_face: bool = False) -> list[str]:
    """The imports that are against the order, or go past a face."""
    before = ORDER[: ORDER.index(place(module))]
    outside = [target for target in imports(module, source, is_face) if place(target) != place(module)]
    return [target for target in outside if target not in before]


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a loop; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_file_has_its_place():
    assert {place(module) for module in FILES} == set(ORDER)


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_folder_imports_only_from_those_before_it_and_through_their_faces(module):
    path = FILES[module]
    assert broken(module, path.read_text(encoding="utf-8"), path.name == "__init__.py") == []


def test_no_files_import_each_other_in_a_circle():
    graph = {
        module: set(imports(module, path.read_text(encoding="utf-8"), path.name == "__init__.py"))
        for module, path in FILES.items()
    }
    assert circle(graph) == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("decision.policy", "from ..types import Decision", []),
        ("decision.policy", "from ..timing import StepTime", []),
        ("decision.policy", "from ..timing.step_time import StepTime", ["timing.step_time"]),
        ("decision.policy", "from ..gradients import backward", ["gradients.backward"]),
        ("decision.policy", "from adaptbs.timing.step_time import StepTime", ["timing.step_time"]),
        ("decision.policy", "import adaptbs.timing.step_time", ["timing.step_time"]),
        ("decision.policy", "from .progress import Progress", []),
        ("decision.policy", "from ..loader import AdaptiveDataLoader", ["loader"]),
        ("decision.policy", "from adaptbs import NoiseScale", [""]),
        ("decision.policy", "if TYPE_CHECKING:\n    from ..loader import AdaptiveDataLoader", ["loader"]),
        ("decision.policy", "def f():\n    from ..loader import AdaptiveDataLoader", ["loader"]),
    ],
)
def test_the_rule_itself(module, source, expected):
    assert broken(module, source) == expected


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}


@pytest.mark.parametrize("folder", sorted(module for module, path in FILES.items() if path.name == "__init__.py"))
def test_a_face_is_one_sentence_and_the_names_that_others_use(folder):
    tree = ast.parse(FILES[folder].read_text(encoding="utf-8"))
    sentence, *rest = tree.body
    assert isinstance(sentence, ast.Expr) and isinstance(sentence.value, ast.Constant)
    assert all(isinstance(node, (ast.ImportFrom, ast.Assign)) for node in rest)


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def libraries(source: str) -> set[str]:
    """The packages of others that a file imports: at its top, within functions, and for type checkers alone."""
    nodes = list(ast.walk(ast.parse(source)))
    plain = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    from_others = {node.module.split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return plain | from_others


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_trainer_is_imported_by_its_adapter_alone(module):
    for library in libraries(FILES[module].read_text(encoding="utf-8")) & set(ALONE):
        assert place(module) in ALONE[library], f"{module} imports {library}"


def test_imports_of_others_are_found():
    source = "import torch.nn\nfrom .fastai import x\ndef f():\n    from lightning.pytorch import Callback"
    assert libraries(source) == {"torch", "lightning"}


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
    assert not {"matplotlib", "scipy", "pandas", "IPython", *ALONE} & packages
    assert len(loaded) <= LOADED, loaded


def test_the_public_names():
    values = ["BatchSizeSuggestion", "GlobalBatch", "MemoryProbe", "NoiseScale", "SquaredNorms"]
    assert sorted(adaptbs.__all__) == sorted(["AdaptiveDataLoader", *values, "bs_find", "one_cycle", "probe_memory"])
    assert all(callable(getattr(adaptbs, name)) for name in adaptbs.__all__)


def test_the_package_is_marked_as_typed():
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_file_holds_one_idea(module):
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= 300


# What is set on objects of others: the user's model, tensors, variables and generators, torch's and the trainers' own
# objects, and a class that is being decorated. Everything else belongs to one of our objects, which alone may set it.
THEIRS = {
    "p", "parameter", "tensor", "module", "loader", "sampler", "scheduler", "twin", "sums", "cls", "init",
    "learn", "self.learn", "learn.progress.pbar", "bar.main_bar", "recorder", "self.recorder", "self.learn.recorder",
    "cb", "state", "self.args", "self.control",
    "self._trainer", "trainer.strategy", "self._fit_loop", "self._epoch_loop", "counted.total", "combined", "fetcher",
    "config", "self._config", "line", "cell", "bits",
}  # fmt: skip


def assigned(function: ast.AST) -> Iterator[ast.Attribute]:
    """The attributes that a function sets."""
    for node in ast.walk(function):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
            for target in targets:
                every = target.elts if isinstance(target, ast.Tuple) else [target]
                yield from (t for t in every if isinstance(t, ast.Attribute))


def set_on_others(source: str) -> list[str]:
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    owners = {ast.unparse(attribute.value) for function in functions for attribute in assigned(function)}
    return sorted(owners - THEIRS - {"self"})


def properties_that_act(source: str) -> list[str]:
    """Properties that set something, unless it is a setter's."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list)
        and any(assigned(node))
    ]


@pytest.mark.parametrize("module", sorted(FILES))
def test_no_object_writes_anothers_attributes(module):
    assert set_on_others(FILES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_property_changes_nothing(module):
    assert properties_that_act(FILES[module].read_text(encoding="utf-8")) == []


def test_writers_are_found():
    assert set_on_others("def f(self, run):\n    self.a = 1\n    run.epoch, self.b = 1, 2") == ["run"]
    assert set_on_others("def f(self, cap):\n    cap.piece += 1") == ["cap"]
    assert properties_that_act("class A:\n    @property\n    def most(self):\n        self.x = 1") == ["most"]
    assert properties_that_act("class A:\n    @property\n    def most(self):\n        return self.x") == []

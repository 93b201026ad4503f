"""Every public name, argument, reason and doubt has its place on one page of the documentation."""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

import adaptbs
from adaptbs.report.history import COLUMNS
from adaptbs.report.words import REASONS
from adaptbs.run.settings import SHARED_LINE, Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {page.relative_to(DOCS).as_posix(): page.read_text() for page in sorted(DOCS.rglob("*.md"))}
SOURCES = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "adaptbs").rglob("*.py"))}
FACES = ("adaptbs", *(f"adaptbs.{name}" for name in ("fastai", "accelerate", "lightning", "transformers")))

Definition = ast.ClassDef | ast.FunctionDef


def source_of(module: str) -> Path:
    """The file of a module, as "adaptbs.fastai"; it is read and not imported, because a trainer may be missing."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def names_in_all(module: str) -> list[str]:
    for node in SOURCES[source_of(module)].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise AssertionError(f"{module} has no __all__")


def definition_of(path: str) -> Definition:
    """The class or function of a dotted path, followed through the imports of faces."""
    module, _, name = path.rpartition(".")
    for node in SOURCES[source_of(module)].body:
        if isinstance(node, Definition) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            package = module if source_of(module).name == "__init__.py" else module.rpartition(".")[0]
            above = package.split(".")[: len(package.split(".")) - (node.level - 1)]
            return definition_of(".".join([*above, *filter(None, [node.module]), name]))
    raise AssertionError(f"{path} is nowhere defined")


def pages_of(pattern: str) -> list[str]:
    """The pages on which each match stands, one entry a match."""
    return [page for page, text in PAGES.items() for _ in re.findall(pattern, text, re.MULTILINE)]


PUBLIC = [f"{face}.{name}" for face in FACES for name in names_in_all(face)]
SHOWN = [path for text in PAGES.values() for path in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]
FUNCTIONS = [n.name for n in SOURCES[source_of("adaptbs.targets")].body if isinstance(n, ast.FunctionDef)]
OBJECTS = [
    *(path for path in SHOWN if not source_of(path).exists()),
    *(f"adaptbs.targets.{name}" for name in FUNCTIONS if not name.startswith("_")),
]
TAKE_SETTINGS = (
    "adaptbs.AdaptiveDataLoader", "adaptbs.fastai.AdaptiveBatchSize", "adaptbs.accelerate.adaptive",
    "adaptbs.lightning.AdaptiveBatchSize", "adaptbs.transformers.AdaptiveTrainer",
    "adaptbs.transformers.AdaptiveTrainerMixin",
)  # fmt: skip
MADE_BY_US = ("adaptbs.accelerate.AcceleratedLoader",)  # its arguments are those of the function that makes it
EVENT = re.compile(r"(before|after|on)_\w+")  # called by a trainer


@pytest.mark.parametrize("name", [*PUBLIC, "adaptbs.targets"])
def test_a_public_name_is_documented_on_one_page(name):
    assert len(pages_of(rf"^::: {re.escape(name)}$")) == 1


def test_a_name_that_pages_take_from_a_folder_is_in_its_face():
    texts = "\n".join(PAGES.values())
    named = {name for names in re.findall(r"from adaptbs\.gradients import (.+)|adaptbs\.gradients\.(\w+)", texts)
             for name in "".join(names).split(", ")}  # fmt: skip
    assert named and named <= set(names_in_all("adaptbs.gradients"))
    assert {f"adaptbs.gradients.{name}" for name in named} <= set(SHOWN)


def arguments_of(made: Definition) -> list[str]:
    """Arguments that a caller may give, without the shared ones and those that are handed on."""
    function = next((n for n in made.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if isinstance(made, ast.FunctionDef):
        function = made
    if function is None:
        return []
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name != "self"]


def fields_of(made: Definition) -> list[str]:
    """Fields of a dataclass or a named tuple that are no private ones."""
    told = [ast.unparse(decorator) for decorator in made.decorator_list] + [
        ast.unparse(base) for base in getattr(made, "bases", [])
    ]
    if not any("dataclass" in text or text == "NamedTuple" for text in told):
        return []
    names = [n.target.id for n in made.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def documented(made: Definition) -> list[str]:
    """The arguments and attributes that a docstring lists, in its order."""
    docstring = ast.get_docstring(made) or ""
    listed = "\n".join(re.findall(r"^(?:Args|Attributes):\n(.*?)(?:\n\n|\Z)", docstring, re.DOTALL | re.MULTILINE))
    lines = re.findall(r"^    (\S[^:\n]*):", listed, re.MULTILINE)
    return [name.lstrip("*") for line in lines for name in line.split(", ")]


@pytest.mark.parametrize("path", [path for path in OBJECTS if path not in MADE_BY_US])
def test_every_argument_and_field_is_told_where_the_name_is(path):
    made = definition_of(path)
    told = documented(made)
    if "every other argument of DataLoader" in (ast.get_docstring(made) or ""):
        told += list(inspect.signature(DataLoader.__init__).parameters)
    missing = [name for name in (*arguments_of(made), *fields_of(made)) if name not in told]
    assert not missing


@pytest.mark.parametrize("path", OBJECTS)
def test_every_public_member_has_a_docstring_or_it_would_not_be_shown(path):
    made = definition_of(path)
    methods = [n for n in made.body if isinstance(n, ast.FunctionDef) and isinstance(made, ast.ClassDef)]
    told = {n.name for n in methods if ast.get_docstring(n)}  # the getter's, for a setter too
    shown = {n.name for n in methods if not n.name.startswith("_") and not EVENT.fullmatch(n.name)}
    assert not shown - told


def test_the_shared_arguments_are_told_on_one_page():
    assert pages_of(r"^::: adaptbs\.run\.Settings$") == ["arguments.md"]
    assert documented(definition_of("adaptbs.run.Settings")) == [field.name for field in fields(Settings)]
    told = first_cells(PAGES["arguments.md"], "argument")
    assert sorted(told) == sorted(field.name for field in fields(Settings))
    others = {page: first_cells(text, "argument") for page, text in PAGES.items() if page != "arguments.md"}
    assert not {page: cells for page, cells in others.items() if set(cells) & set(told)}
    twice = {path: set(documented(definition_of(path))) & set(told) for path in TAKE_SETTINGS}
    assert not {path: names for path, names in twice.items() if names}


def test_the_loaders_docstring_shows_the_shared_arguments():
    for field in fields(Settings):
        assert f"\n        {field.name}: " in (adaptbs.AdaptiveDataLoader.__doc__ or "")
    assert SHARED_LINE.strip() in (ast.get_docstring(definition_of("adaptbs.AdaptiveDataLoader")) or "")


def first_cells(page: str, *heads: str) -> list[str]:
    """What stands in backticks in the first column of the tables with such a head."""
    cells = []
    for table in re.findall(r"(?:^\|.*\n)+", page + "\n", re.MULTILINE):
        head, *rows = (line.split("|")[1].strip() for line in table.splitlines())
        if head in heads:
            cells += [word for row in rows for word in re.findall(r"`(.+?)`", row)]
    return cells


def test_every_column_of_the_history_is_told_on_one_page():
    assert {page: sorted(cells) for page, text in PAGES.items() if (cells := first_cells(text, "column"))} == {
        "logging.md": sorted(COLUMNS)
    }


def constants() -> dict[str, set[str]]:
    """Module-level strings of the package by their name."""
    found: dict[str, set[str]] = defaultdict(set)
    for tree in SOURCES.values():
        for node in tree.body:
            if isinstance(node, ast.Assign):
                names = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets
                values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
                for name, value in zip(names, values, strict=False):
                    if isinstance(name, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                        found[name.id].add(value.value)
    return found


CONSTANTS = constants()


def words(node: ast.expr | None) -> Iterator[str]:
    """The texts that an expression may be, with n for whatever is put into them."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=values):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "n" for v in values)
        case ast.Name(id=name):
            yield from CONSTANTS.get(name, ())
        case ast.IfExp(body=body, orelse=other):
            yield from (*words(body), *words(other))
        case ast.BoolOp(values=values):
            yield from (word for value in values for word in words(value))


def uttered() -> tuple[set[str], set[str]]:
    """The reasons for which the package holds a batch, and its doubts about a number."""
    holds, doubts = set(), set()
    for tree in SOURCES.values():
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=function, args=[given, *_]) if re.search(
                    r"holds\b.*\.(add|doubt)$|\.hold$", ast.unparse(function)
                ):
                    holds |= set(words(given))
                case ast.Call(func=ast.Name(id="partial"), args=[function, given]) if re.search(
                    r"holds\b.*\.doubt$", ast.unparse(function)
                ):
                    holds |= set(words(given))
                case ast.Call(keywords=keywords):
                    doubts |= {w for k in keywords if k.arg in ("caveat", "doubt") for w in words(k.value)}
                case ast.FunctionDef(name="doubt" | "_caveat" | "read_caveat"):
                    returned = [n.value for n in ast.walk(node) if isinstance(n, ast.Return)]
                    doubts |= {word for value in returned for word in words(value)}
                case ast.ClassDef(name="FinderDoubts"):
                    returned = [n.value for n in ast.walk(node) if isinstance(n, ast.Return)]
                    doubts |= {word for value in returned for word in words(value)}
                case ast.Assign(targets=[ast.Name(id="caveat")], value=value):
                    doubts |= set(words(value))
    return holds, doubts


HOLDS, DOUBTS = uttered()
RAMPS = {CONSTANT for name in ("PLANNED", "EARLIEST", "LATEST") for CONSTANT in CONSTANTS[name]}


def test_what_is_uttered_is_found():
    """Or the tests below would pass because they saw nothing."""
    assert {"batch cannot be cut", "rows are not samples", "optimizer not known"} <= HOLDS
    assert {"samples are coupled", "BatchNorm over n", "n rows of n samples", "drifting", "not finite"} <= DOUBTS
    assert len(RAMPS) == 3


@pytest.mark.parametrize(
    ("heads", "said"),
    [(("reason",), set(REASONS) | HOLDS | RAMPS), (("doubt",), DOUBTS)],
    ids=["reasons", "doubts"],
)
def test_every_reason_and_every_doubt_is_told_on_one_page(heads, said):
    told = {page: {re.sub(r"\bm\b", "n", word) for word in first_cells(text, *heads)} for page, text in PAGES.items()}
    where = {word: [page for page, those in told.items() if word in those] for word in said}
    assert {word: pages for word, pages in where.items() if len(pages) != 1} == {}
    assert set().union(*told.values()) - said == set()  # nor is one told that nobody says


def test_one_page_explains_the_estimate():
    formula = re.compile(
        r"E\|G_b\|² =|B_simple = |tr\(Σ\) = (?!E)|tr\(Σ\) ?/ ?\|G\|²|"
        r"squared (?:gradient )?norms of two batch sizes at the"
    )
    notebooks = {page.name: page.read_text() for page in DOCS.glob("*.ipynb")}
    texts = {**PAGES, **notebooks, "README.md": (ROOT / "README.md").read_text()}
    assert [page for page, text in texts.items() if formula.search(text)] == ["estimate.md"]

"""`python -m adaptbs doctor`: versions, devices, and which layers of a model can be measured in their step."""

from __future__ import annotations

import inspect
import logging
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import __version__
from .checks import check_model
from .gradients import owned, why_loss_is_needed, why_no_terms

log = logging.getLogger(__name__)

PACKAGES = ("torch", "numpy", "scipy", "fastai", "matplotlib", "pandas")
FORMS = "give FILE.py:make_model, a function without arguments that returns the model, or a fastai export.pkl"


class NoModelError(ValueError):
    """The named model cannot be loaded. The message says why, and what to name instead."""


def main(arguments: Sequence[str]) -> str:
    """The report, as text.

    Args:
        arguments: nothing, or one of `FILE.py:make_model` and the file of a fastai Learner's `export()`.

    Raises:
        NoModelError: if the arguments name no model.
    """
    if len(arguments) > 1:
        raise NoModelError(f"doctor {' '.join(arguments)}: it takes one model at a time: {FORMS}")
    lines = [*versions(), *devices()]
    if arguments:
        model = load(arguments[0])
        try:
            check_model(model)
        except (TypeError, ValueError) as error:
            raise NoModelError(f"{arguments[0]}: {error}") from error
        lines += ["", *examine(model, arguments[0])]
    return "\n".join(lines)


def versions() -> Iterator[str]:
    """Versions of Python, of adaptbs, and of the packages that it works with."""
    yield f"python      {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield f"adaptbs     {__version__}"  # of the code that runs, installed or not
    for name in PACKAGES:
        try:
            # torch's own version names its build, such as +cu124. The package's may not.
            version = torch.__version__ if name == "torch" else metadata.version(name)
        except metadata.PackageNotFoundError:
            version = "not installed"
        yield f"{name:<11} {version}"


def devices() -> Iterator[str]:
    """The devices that torch can train on."""
    yield f"cpu         {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        yield f"{f'cuda:{i}':<11} {about.name}, {about.total_memory / 2**30:.1f} GiB"
    if not torch.cuda.device_count():
        yield "cuda        none"
    if torch.backends.mps.is_available():
        yield "mps         available"
    if torch.xpu.is_available():
        yield "xpu         available"


def load(name: str) -> nn.Module:
    """Load the model of a file. This runs the code in the file, so name only files that you trust.

    Raises:
        NoModelError: if there is no such file or function, or it returns no model.
    """
    if name.endswith(".pkl"):
        return _exported(Path(name))
    file, colon, function = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise NoModelError(f"doctor {name}: it names no model: {FORMS}")
    return _made_by(Path(file), function)


def _exported(path: Path) -> nn.Module:
    _check_exists(path)
    try:
        from fastai.learner import load_learner
    except ImportError as error:
        raise NoModelError(f'{path} is opened by fastai: pip install "adaptbs[fastai]"') from error
    try:
        model: nn.Module = load_learner(path).model
    except Exception as error:  # whatever unpickling raises
        raise NoModelError(f"{path} is no fastai export that opens here ({type(error).__name__}: {error})") from error
    return model


def _made_by(path: Path, function: str) -> nn.Module:
    _check_exists(path)
    # A name that shadows no other module, such as a `types.py` would.
    spec = util.spec_from_file_location(f"adaptbs_doctor_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise NoModelError(f"{path} cannot be imported: {FORMS}")
    module = util.module_from_spec(spec)
    before = list(sys.path)
    sys.path.insert(0, str(path.resolve().parent))  # so that it finds the files beside it
    sys.modules[spec.name] = module  # where its dataclasses look up their annotations
    try:
        spec.loader.exec_module(module)
        make = getattr(module, function, None)
        if make is None:
            raise NoModelError(f"{path} has no {function}: {FORMS}")
        model = make if isinstance(make, nn.Module) else _called(make, f"{path}:{function}")
    finally:
        sys.path[:] = before
        sys.modules.pop(spec.name, None)
    if not isinstance(model, nn.Module):
        raise NoModelError(f"{path}:{function} gives a {type(model).__name__}: it must return a torch.nn.Module")
    return model


def _called(make: Any, name: str) -> Any:
    if not callable(make):
        raise NoModelError(f"{name} is a {type(make).__name__}, no function: {FORMS}")
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise NoModelError(f"{name} cannot be called without arguments, {error}: {FORMS}") from error
    except ValueError:  # it shows no signature
        log.debug("%s shows no signature", name)
    return make()


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise NoModelError(f"there is no file {path}: {FORMS}")


def examine(model: nn.Module, name: str) -> Iterator[str]:
    """List the layers that train and if each can be measured in the training step, and say how the model is measured.

    Puts the model into training mode, in which it is measured.
    """
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    yield f"{name}: {type(model).__name__}, {_count(trained):,} parameters that train, {frozen:,} frozen"
    if not trained:
        yield "Nothing of it trains, so there is no gradient to measure the noise of: unfreeze it."
        return
    yield ""
    yield f"{'in step':<9}{'parameters':>12}  layer"
    needed, shown = why_loss_is_needed(model, trained, choice="auto", views=False), False
    for label, layer, parameters in owned(model, trained):
        why = why_no_terms(layer)
        shown = shown or why is not None
        said, reason = ("yes", "") if why is None else ("no", f": {why}")
        yield f"{said:<9}{_count(parameters):>12,}  {label}{reason}"
    yield ""
    if needed is not None and not shown:  # it is no single layer's
        yield f"{needed[0].upper()}{needed[1:]}."
    if needed is None and not shown:
        yield "The model is measured in the step that trains. No loss has to be given."
    else:
        yield "The model is measured by halves of a batch, in a pass of its own, which needs the loss:"
        yield "give loss_func= or batch_loss= to AdaptiveDataLoader. A fastai Learner's is known."


def _count(parameters: Sequence[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)

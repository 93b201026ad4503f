import ast
import inspect
import pickle
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from torch import nn
from torch.optim import SGD

import adaptbs
from adaptbs import AdaptiveDataLoader
from adaptbs.checks import check_share, check_size
from adaptbs.fastai import AdaptiveBatchSize
from adaptbs.run.settings import SHARED_LINE, Settings, SharedArguments, shows_shared_arguments
from adaptbs.timing.step_time import StepTime


def test_no_argument_is_needed():
    settings = Settings()
    assert (settings.target, settings.lr_scaling, settings.overhead) == ("goodput", "auto", None)
    assert settings.max_batch_size is settings.base_batch_size is settings.step_time is None


def test_functions_are_taken_for_target_and_lr_scaling():
    settings = Settings(target=lambda *_: 8, lr_scaling=lambda k, _: k)
    assert settings.target(None, 8, 0.0) == 8
    assert settings.lr_scaling(2.0, None) == 2


def test_a_step_time_becomes_a_function_of_the_batch():
    step_time = Settings(step_time=[1, 0.5]).step_time
    assert isinstance(step_time, StepTime)
    assert step_time(4) == 3


def test_a_run_may_start_with_the_whole_dataset_and_at_its_maximum():
    Settings(max_batch_size=8).check_start(batch_size=8, samples=8)


def test_a_run_may_not_start_with_more():
    with pytest.raises(ValueError, match=r"batch_size=9 .* 8 samples of the dataset"):
        Settings().check_start(batch_size=9, samples=8)
    with pytest.raises(ValueError, match=r"batch_size=9: .*drop_last=True .*lower batch_size"):
        Settings().check_start(batch_size=9, samples=0)
    with pytest.raises(ValueError, match=r"max_batch_size=7 is below batch_size=8"):
        Settings(max_batch_size=7).check_start(batch_size=8, samples=8)


def test_a_size_is_an_integer_of_any_library():
    check_size("batch_size", 1)
    check_size("batch_size", np.int64(64))


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), (True, TypeError)])
def test_other_sizes_are_refused(value, error):
    with pytest.raises(error, match=f"num_it={value!r}: it must be"):
        check_size("num_it", value)


def test_a_share_lies_between_0_and_1():
    check_share("confidence", 0.5)
    check_share("overhead", 0, or_zero=True)


@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (1, ValueError), (-0.1, ValueError), (float("nan"), ValueError), ("x", TypeError),
     (True, TypeError)],
)  # fmt: skip
def test_other_shares_are_refused(value, error):
    with pytest.raises(error, match=f"confidence={value!r}: it must"):
        check_share("confidence", value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "thirds"}, "source='thirds': it must be one of 'auto', 'in_step', 'halves'"),
        ({"source": lambda: None}, "source="),
        ({"metric": "fisher"}, "metric='fisher': it must be one of 'plain', 'adam'"),
        ({"source": "in_step", "by_group": True}, "are measured by halves"),
    ],
)
def test_how_to_measure_is_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Settings(**arguments)


def test_what_follows_the_batch():
    assert Settings().following == {"lr", "betas", "eps", "weight_decay"}
    assert Settings(lr_scaling="sqrt").following == {"lr"}
    betas = Settings(transfer=["betas"])
    assert (betas.following, betas.lr_scaling) == ({"betas"}, "none")


def test_an_unknown_hyperparameter_is_refused():
    with pytest.raises(ValueError, match="'wd' is not one of 'lr', 'betas', 'eps', 'weight_decay'"):
        Settings(transfer=["wd"])


def test_the_typed_names_are_those_of_the_settings_with_the_same_types():
    declared = {field.name: field.type for field in fields(Settings)}
    assert SharedArguments.__annotations__.keys() == declared.keys()
    written = {name: annotation.__forward_arg__ for name, annotation in SharedArguments.__annotations__.items()}
    assert written == declared


def test_every_shared_argument_is_documented_once():
    documented = re.findall(r"^        (\w+): ", Settings.__doc__, re.MULTILINE)
    assert documented == [field.name for field in fields(Settings)]


@shows_shared_arguments
class Face:
    """A face.

    Args:
        first: an argument of its own.
        shared arguments: documented by `Settings`.

    Raises:
        ValueError: now and then.
    """

    def __init__(self, first: int, **stock) -> None:
        self.first, self.settings = first, Settings.taken_from(stock)
        self.stock = stock


def test_a_face_shows_the_shared_arguments_in_its_signature_and_docstring():
    parameters = inspect.signature(Face).parameters
    assert list(parameters) == ["first", *(field.name for field in fields(Settings)), "stock"]
    assert parameters["overhead"].default == Settings().overhead
    documented = re.findall(r"^        (\w+): ", Face.__doc__, re.MULTILINE)[1:-1]
    assert documented == [field.name for field in fields(Settings)]
    assert "shared arguments" not in Face.__doc__ and "now and then" in Face.__doc__


def test_a_face_takes_the_settings_out_of_its_arguments():
    face = Face(1, overhead=0.5, num_workers=2)
    assert (face.settings.overhead, face.stock) == (0.5, {"num_workers": 2})


def test_loader_and_callback_show_and_document_them():
    for face in (AdaptiveDataLoader, AdaptiveBatchSize):
        assert {field.name for field in fields(Settings)} <= inspect.signature(face).parameters.keys()
        assert "share of the run between two decisions" in face.__doc__
    assert "stock" in inspect.signature(AdaptiveDataLoader).parameters
    with pytest.raises(TypeError, match=r"AdaptiveBatchSize\(\) got an unexpected keyword argument 'max_batch'"):
        AdaptiveBatchSize(max_batch=64)
    model = nn.Linear(1, 1)
    with pytest.raises(TypeError, match="'max_batch'"):
        AdaptiveDataLoader(range(64), 8, model=model, optimizer=SGD(model.parameters(), 0.1), overhead=0, max_batch=64)


def test_a_logger_is_a_function_and_stays_in_its_process():
    with pytest.raises(TypeError, match=r"log=3: it must be a function, called as log\(values, step\)"):
        Settings(log=3)
    settings = Settings(log=lambda values, step: None, step_time=(1, 0.5), overhead=0.1)
    copied = pickle.loads(pickle.dumps(settings))
    assert copied.log is None and (copied.step_time, copied.overhead) == (settings.step_time, 0.1)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"transfer": ["betas"]},
        {"transfer": ["lr"], "lr_scaling": "linear"},
        {"lr_scaling": "none"},
        {"overhead": 0},
    ],
)
def test_a_pickle_has_the_same_settings(given):
    settings = Settings(**given)
    copied = pickle.loads(pickle.dumps(settings))
    assert copied == settings and copied.following == settings.following


PACKAGE = Path(adaptbs.__file__).parent
FACES = [
    pytest.param(node, id=f"{path.parent.name}/{path.stem}")
    for path in sorted(PACKAGE.rglob("*.py"))
    for node in ast.parse(path.read_text(encoding="utf-8")).body
    if isinstance(node, ast.ClassDef) and any("shows_shared_arguments" in ast.dump(d) for d in node.decorator_list)
]


def test_there_is_a_face_for_each_library():
    assert len(FACES) == 4


@pytest.mark.parametrize("face", FACES)
def test_a_face_has_the_line_that_the_shared_arguments_take_the_place_of(face):
    """By the source, as no environment has all of the libraries."""
    assert SHARED_LINE in ast.get_docstring(face, clean=False).splitlines()

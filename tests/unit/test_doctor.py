import re
import sys

import pytest
import torch
from torch import nn

import adaptbs
from adaptbs import doctor
from adaptbs.__main__ import main
from adaptbs.gradients import owned
from tests.integration.fastai.learners import make_tabular_learner

MODELS = """
from torch import nn
from beside import WIDTH

def make_model():
    return nn.Sequential(nn.Linear(4, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))

plain = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 2))

def number():
    return 3

SIZE = 3

def sized(n):
    return nn.Linear(n, 1)

def lazy():
    return nn.LazyLinear(1)
"""


@pytest.fixture
def models(tmp_path):
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "beside.py").write_text("WIDTH = 8\n")
    return tmp_path / "models.py"


def test_without_a_model_it_prints_versions_and_devices(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert f"torch       {torch.__version__}" in shown and f"adaptbs     {adaptbs.__version__}" in shown
    assert "cpu         " in shown and "layer" not in shown


def test_a_package_that_is_missing_is_no_error(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package-here",))
    assert list(doctor.versions())[-1] == "no-such-package-here not installed"


def test_it_names_the_layers_that_cannot_be_measured_in_the_step_and_why(models, capsys):
    assert main(["doctor", f"{models}:make_model"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^yes +40  Linear '0'$", shown, re.MULTILINE)
    assert re.search(r"^yes +9  Linear '3'$", shown, re.MULTILINE)
    (batch_norm,) = (line for line in shown.splitlines() if "BatchNorm1d '1'" in line)
    assert batch_norm.split()[:2] == ["no", "16"] and "ties the examples" in batch_norm
    assert "65 parameters that train, 0 frozen" in shown
    assert "by halves of a batch" in shown and "loss_func=" in shown


def test_a_model_file_may_hold_a_dataclass_whose_annotations_are_not_evaluated(tmp_path):
    (tmp_path / "sized.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom torch import nn\n"
        "@dataclass\nclass Sizes:\n    inputs: int = 3\ndef make_model():\n    return nn.Linear(Sizes().inputs, 1)\n"
    )
    before = set(sys.modules)
    assert "4 parameters that train" in doctor.main([f"{tmp_path / 'sized.py'}:make_model"])
    assert set(sys.modules) == before


def test_a_model_that_is_measured_in_its_step_needs_no_loss(models, capsys):
    assert main(["doctor", f"{models}:plain"]) == 0
    assert "measured in the step that trains. No loss has to be given." in capsys.readouterr().out


@pytest.mark.parametrize("affine", [False, True])
def test_a_batch_norm_without_parameters_to_train_ties_examples_all_the_same(affine):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, affine=affine).requires_grad_(False), nn.Linear(8, 1))
    shown = "\n".join(doctor.examine(model, "it"))
    assert re.search(r"^no +0  BatchNorm1d '1': in training mode", shown, re.MULTILINE)
    assert "by halves of a batch" in shown


def test_a_compiled_model_is_measured_by_halves():
    model = nn.Sequential(nn.Linear(4, 1))
    model.compile(backend="eager")
    shown = "\n".join(doctor.examine(model, "it"))
    assert "is compiled" in shown and "by halves of a batch" in shown


@pytest.mark.filterwarnings("ignore:load_learner:UserWarning")
def test_a_fastai_export(tmp_path, capsys):
    learn = make_tabular_learner()
    learn.path = tmp_path
    learn.export("export.pkl")
    assert main(["doctor", str(tmp_path / "export.pkl")]) == 0
    shown = capsys.readouterr().out
    trained = sum(p.numel() for p in learn.model.parameters() if p.requires_grad)
    assert f"TabularModel, {trained:,} parameters that train" in shown
    assert "Embedding 'embeds.0'" in shown and "BatchNorm1d 'bn_cont'" in shown


def test_attention_owns_its_projections_and_frozen_layers_are_left_out():
    model = nn.TransformerEncoderLayer(8, 2, 16)
    model.linear1.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    labels = [label for label, *_ in owned(model, trained)]
    assert "MultiheadAttention 'self_attn'" in labels and "Linear 'linear2'" in labels
    assert not any("out_proj" in label or "linear1" in label for label in labels)
    assert sum(p.numel() for *_, own in owned(model, trained) for p in own) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


def test_a_model_without_anything_to_train_is_said_to_be():
    assert "Nothing of it trains" in list(doctor.examine(nn.Linear(1, 1).requires_grad_(False), "it"))[-1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model", "doctor model: it names no model: give FILE.py:make_model"),
        ("{}", "it names no model"),
        ("{}:make", "has no make: give FILE.py:make_model"),
        ("{}:number", "gives a int: it must return a torch.nn.Module"),
        ("nowhere.py:make_model", "there is no file nowhere.py"),
        ("nowhere.pkl", "there is no file nowhere.pkl"),
        ("{}:SIZE", "is a int, no function: give FILE.py:make_model"),
        ("{}:sized", "cannot be called without arguments, missing a required argument: 'n'"),
        ("{}:lazy", "lazy layers that have no shape yet"),
    ],
)
def test_what_names_no_model_is_refused_with_what_to_name(name, words, models, capsys):
    assert main(["doctor", name.format(models)]) == 1
    assert words in capsys.readouterr().err


def test_a_file_that_is_no_export_is_named(tmp_path, capsys):
    file = tmp_path / "weights.pkl"
    torch.save({"weight": torch.ones(1)}, file)
    assert main(["doctor", str(file)]) == 1
    assert "weights.pkl is no fastai export that opens here (AttributeError" in capsys.readouterr().err


def test_one_model_at_a_time(capsys):
    assert main(["doctor", "a.pkl", "b.pkl"]) == 1
    assert "one model at a time" in capsys.readouterr().err

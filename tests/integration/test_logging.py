"""`log=` in whole runs, and the blocks of docs/logging.md with the packages that they name, or stand-ins for them."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fastai.learner import load_learner

from adaptbs.fastai import AdaptiveBatchSize
from adaptbs.memory.limit import MemoryLimit
from adaptbs.ranks import Ranks
from adaptbs.run.controller import Controller
from adaptbs.run.settings import Settings
from tests.integration.fastai.learners import make_learner, make_tabular_learner
from tests.integration.test_readme import surroundings
from tests.integration.training import Numbered, adaptive, network, train

PAGE = (Path(__file__).parents[2] / "docs" / "logging.md").read_text()
TENSORBOARD, WANDB, MLFLOW, TRACKIO, AIM = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
QUICK = {"step_time": (1.0, 0.0), "overhead": 0.2, "decide_every": 0.1}


class Log:
    def __init__(self) -> None:
        self.calls: list[tuple[dict, int]] = []

    def __call__(self, values: dict, step: int) -> None:
        self.calls.append((values, step))

    def matches(self, history) -> None:
        told = [record for record in history if record["event"] != "start"]
        assert [(values["event"], step) for values, step in self.calls] == [(r["event"], r["samples"]) for r in told]
        steps = [step for _, step in self.calls]
        assert steps == sorted(steps) and {type(step) for step in steps} == {int}
        decisions = [values for values, _ in self.calls if values["event"] == "decision"]
        assert decisions and {"batch_size", "lr_factor", "reason", "progress"} <= decisions[-1].keys()
        assert any("noise_scale" in values or "low" in values for values in decisions)
        assert any(values["event"] == "measurement" for values, _ in self.calls)


def test_a_loader_logs_its_measurements_and_decisions():
    log, model = Log(), network()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    loader = adaptive(Numbered(), model, optimizer, log=log, **QUICK)
    train(model, optimizer, loader, 2)
    log.matches(loader.history)


def test_the_callback_logs_its_measurements_and_decisions():
    log, learn = Log(), make_learner()
    callback = AdaptiveBatchSize(log=log, **QUICK)
    learn.fit(4, cbs=callback)
    log.matches(callback.history)


def test_logging_changes_nothing_and_is_no_part_of_the_state():
    def run(**more):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        loader = adaptive(Numbered(), model, optimizer, **QUICK, **more)
        torch.manual_seed(1)
        return train(model, optimizer, loader, 2).weights, loader.state_dict()

    def broken(values: dict, step: int) -> None:
        raise OSError("disk full")

    weights, state = run()
    for log in (Log(), broken):
        others, its = run(log=log)
        assert torch.equal(weights, others)
        assert repr(its) == repr(state)


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_alone_logs(rank):
    log = Log()
    made = Controller(
        Settings(log=log, **QUICK), batch_size=8, epoch_samples=64, adaptive=True, ranks=Ranks(rank, 2)
    )  # fmt: skip
    made.start(1, torch.device("cpu"), MemoryLimit())
    made.no_more_than(4, "out of memory", "memory")
    assert [values["reason"] for values, _ in log.calls] == ["memory"] * (rank == 0)


@pytest.mark.filterwarnings("ignore:load_learner:UserWarning")
def test_a_learner_whose_callback_has_a_logger_can_be_exported(tmp_path):
    learn = make_tabular_learner()
    learn.path = tmp_path
    with open(tmp_path / "log.txt", "w") as file:  # which cannot be pickled, as most loggers
        learn.add_cb(AdaptiveBatchSize(log=lambda values, step: file.write(f"{step}: {values}"), **QUICK))
        learn.fit(2)
        learn.export("learner.pkl")
    assert (tmp_path / "log.txt").read_text()
    loaded = load_learner(tmp_path / "learner.pkl")
    assert len(learn.adaptive_batch_size.history) > 0
    assert len(loaded.adaptive_batch_size.history) == 0  # a copy keeps the arguments, and no run


class Writer:
    """SummaryWriter, where tensorboard is not installed."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars.append((tag, scalar_value, global_step))


def run_block(block: str) -> dict:
    space = surroundings()
    exec(compile(block, "logging.md", "exec"), space)
    if "learn.fit" not in block:
        for x, y in (batch for _ in range(5) for batch in space["loader"]):
            space["loss_func"](space["model"](x), y).backward()
            space["optimizer"].step()
            space["optimizer"].zero_grad()
            space["scheduler"].step()
    return space


def test_the_line_for_tensorboard(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    real = importlib.util.find_spec("tensorboard") is not None
    if not real:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    writer = run_block(TENSORBOARD)["writer"]
    if real:
        writer.flush()
        assert list(tmp_path.rglob("events.out*"))
    else:
        assert {"batch_size", "lr_factor"} <= {tag for tag, _, _ in writer.scalars}


def test_the_line_for_weights_and_biases(monkeypatch):
    logged: list[dict] = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda: None, log=logged.append))
    run_block(WANDB)
    assert {"batch_size", "samples", "reason"} <= logged[-1].keys()


def test_the_line_for_mlflow(monkeypatch):
    logged: list[tuple[dict, int]] = []
    stand_in = SimpleNamespace(log_metrics=lambda metrics, step: logged.append((metrics, step)))
    monkeypatch.setitem(sys.modules, "mlflow", stand_in)
    run_block(MLFLOW)
    assert logged and {type(v) for metrics, _ in logged for v in metrics.values()} == {float}


def test_the_line_for_trackio(monkeypatch):
    logged: list[tuple[dict, int]] = []
    stand_in = SimpleNamespace(init=lambda project: None, log=lambda metrics, step: logged.append((metrics, step)))
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    run_block(TRACKIO)
    assert {"batch_size", "reason"} <= logged[-1][0].keys() and type(logged[-1][1]) is int


def test_the_line_for_aim(monkeypatch):
    logged: list[tuple[dict, int]] = []
    stand_in = SimpleNamespace(track=lambda value, step: logged.append((value, step)))
    monkeypatch.setitem(sys.modules, "aim", SimpleNamespace(Run=lambda: stand_in))
    run_block(AIM)
    assert logged and {type(v) for values, _ in logged for v in values.values()} == {float}

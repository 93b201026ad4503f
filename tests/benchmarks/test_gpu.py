"""The GPU benchmark runs on a CPU, where it measures nothing, so that it will run where there is a GPU."""

import json

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import memory, models, step_time

CPU = torch.device("cpu")


def test_each_part_is_written_as_it_comes_and_a_failure_stops_no_other(tmp_path, monkeypatch, capsys):
    def fails(device, quick):
        raise ZeroDivisionError("of a part")

    def left_out(device, quick):
        raise gpu.LeftOut("no such package")

    monkeypatch.setattr(gpu, "PARTS", {"broken": fails, "absent": left_out, "fine": lambda *_: [1, 2]})
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--quick", "--out", str(out), "--only", "broken", "absent", "fine"]) == 1
    written = json.loads(out.read_text())
    assert "ZeroDivisionError: of a part" in written["parts"]["broken"]["error"]
    assert "fails" in written["parts"]["broken"]["traceback"]
    assert written["parts"]["absent"]["left_out"] == "no such package"
    assert written["parts"]["fine"]["result"] == [1, 2]
    assert written["memory"] == "simulated" and written["machine"]["torch"] and written["date"]


def test_failed_tests_are_a_failure():
    assert gpu.failed({"result": {"summary": "1 failed", "failed": ["FAILED tests/gpu/test_cuda.py"]}})
    assert not gpu.failed({"result": {"summary": "5 passed", "failed": []}})
    assert not gpu.failed({"result": [{"model": "MLP"}]}) and not gpu.failed({"left_out": "why"})


def test_it_says_what_to_do_without_a_device(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, said in (([], "no CUDA device"), (["--device", "cpu"], "--out")):
        with pytest.raises(SystemExit):
            gpu.main(arguments)
        assert said in capsys.readouterr().err


def test_the_probe_is_compared_with_bisection(monkeypatch):
    monkeypatch.setattr(models, "LENGTH", 8)  # memory is counted by samples, so short texts and small images do
    monkeypatch.setattr(models, "PIXELS", 8)
    for row in memory.probe(CPU, quick=True):
        assert row["found"] <= row["largest"] == 90 and row["shortfall"] < 0.02
        assert row["trials"] <= 5 and row["ran_out"] <= 1


def only_the_mlp(monkeypatch, module):
    found = {"MLP": models.cases(quick=True)["MLP"]}
    monkeypatch.setattr(module, "cases", lambda quick: found)


def test_what_did_not_fit_ends_where_it_would_have(monkeypatch):
    only_the_mlp(monkeypatch, memory)
    (row,) = memory.out_of_memory(CPU, quick=True)
    assert row["ran_out"] == 1 and row["once_each"] and row["apart"] < 1e-6


def test_a_target_beyond_memory_is_trained_to_the_end(monkeypatch):
    small = models.cases(quick=True)["MLP"]
    monkeypatch.setattr(memory, "cases", lambda quick: {"transformer": small, "CNN with BatchNorm": small})
    for row in memory.larger_than_memory(CPU, quick=True):
        assert row["once_each"] and row["ran_out"] == 0
        assert row["largest_run"] == pytest.approx(row["fits"], abs=2) and "memory" in row["reasons"]


def test_times_are_compared(monkeypatch):
    only_the_mlp(monkeypatch, step_time)
    (row,) = step_time.overhead(CPU, quick=True)
    assert set(row["ratios"]) == set(step_time.KINDS) and all(r["median"] > 0 for r in row["ratios"].values())
    (row,) = step_time.step_time(CPU, quick=True)
    assert set(row["seconds"]) == {16, 32, 64} and "Step" in row["fit"]

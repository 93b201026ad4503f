"""The GPU benchmark runs on a CPU, where it measures nothing, so that it will run where there is a GPU."""

import json
import math
import re
from functools import partial

import pytest
import torch
from scipy.special import stdtrit
from torch import nn

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import cells, memory, models, quality, stand_in, step_time, tasks
from benchmarks.gpu.cells import Book, Cell, Setup, failed, run_part
from benchmarks.gpu.quality import compared, seconds_to
from tests.benchmarks.bare import ROOT, BareMachine

SETUP = Setup(torch.device("cpu"), quick=True)


def results(part) -> list[dict]:
    return [cell.run() for cell in part(SETUP)]


def given(**functions):
    """A part of these cells."""
    return lambda setup: iter([Cell(name, function) for name, function in functions.items()])


def fails():
    raise ZeroDivisionError("of a cell")


def left_out():
    raise cells.LeftOut("no such package")


def test_each_cell_is_written_as_it_comes_and_a_failure_stops_no_other(tmp_path, monkeypatch, capsys):
    parts = {"broken": given(a=fails, b=lambda: 1), "absent": given(c=left_out), "fine": given(d=lambda: [1, 2])}
    monkeypatch.setattr(gpu, "PARTS", parts)
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--quick", "--here", "--out", str(out), "--only", *parts]) == 1
    written = json.loads(out.read_text())
    broken = written["parts"]["broken"]["cells"]
    assert "ZeroDivisionError: of a cell" in broken["a"]["error"] and "fails" in broken["a"]["traceback"]
    assert broken["b"]["result"] == 1
    assert written["parts"]["absent"]["cells"]["c"]["left_out"] == "no such package"
    assert written["parts"]["fine"]["cells"]["d"]["result"] == [1, 2]
    assert (written["device"], written["quick"]) == ("cpu", True) and written["machine"]["torch"] and written["date"]
    assert "broken: failed: a" in capsys.readouterr().out


def test_the_same_command_goes_on_where_it_ended(tmp_path):
    ran: list[str] = []
    broken = [True]

    def cell(name: str):
        ran.append(name)
        if name == "b" and broken[0]:
            fails()
        return name

    part = given(**{name: partial(cell, name) for name in "abcd"})
    out = tmp_path / "gpu.json"
    # No time is left after the first cell: one has to be run, or nothing would ever come of it.
    assert not run_part("part", part, SETUP, Book(out, SETUP), limit=0)
    assert ran == ["a"]
    assert run_part("part", part, SETUP, Book(out, SETUP), limit=100)
    assert ran == ["a", "b", "c", "d"]
    broken[0] = False
    assert run_part("part", part, SETUP, Book(out, SETUP), limit=100)
    assert ran == ["a", "b", "c", "d", "b"], "what failed is run again, and nothing else"
    assert Book(out, SETUP).part("part")["complete"]
    book = Book(out, SETUP)
    book.forget("part")
    run_part("part", part, SETUP, book, limit=100)
    assert ran[5:] == ["a", "b", "c", "d"]


def test_it_ends_in_time_and_goes_on_the_next(tmp_path, monkeypatch, capsys):
    """A cell is begun if one as long as the longest so far would end in time; the first of a part is always run."""
    now = [0.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cells.time, "perf_counter", lambda: now[0])

    def takes(seconds: float) -> None:
        now[0] += seconds

    def part(setup):
        return iter([Cell(name, partial(takes, 100)) for name in "abc"])

    monkeypatch.setattr(gpu, "PARTS", {name: part for name in ("first", "second", "third")})
    out = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--quick", "--here", "--out", str(out), "--only", "first", "second", "third"]
    assert gpu.main([*arguments, "--minutes", "9"]) == 1
    assert now[0] == 500 and "second is not complete: give the same command again" in capsys.readouterr().out
    parts = json.loads(out.read_text())["parts"]
    assert [list(parts[name]["cells"]) for name in ("first", "second")] == [["a", "b", "c"], ["a", "b"]]
    assert gpu.main(arguments) == 0 and now[0] == 900


def test_each_finding_names_a_test_that_there_is():
    table = (ROOT / "tests" / "gpu" / "README.md").read_text()
    named = re.findall(r"`(tests/\S+?)::(\w+)`", table)
    assert len(named) == sum(line.startswith("| f") for line in table.splitlines()) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), (file, test)


def test_results_of_another_device_are_not_mixed(tmp_path):
    Book(tmp_path / "gpu.json", SETUP).write()
    with pytest.raises(SystemExit, match="name another file"):
        Book(tmp_path / "gpu.json", Setup(torch.device("cuda", 0), quick=True))


def test_failed_tests_are_a_failure():
    assert failed({"result": {"summary": "1 failed", "failed": ["FAILED tests/gpu/test_cuda.py"]}})
    assert not failed({"result": {"summary": "5 passed", "failed": []}})
    assert not failed({"result": [{"model": "MLP"}]}) and not failed({"left_out": "why"})


def test_it_says_what_to_do_without_a_device(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, said in (([], "no CUDA device"), (["--device", "cpu"], "--out")):
        with pytest.raises(SystemExit):
            gpu.main(arguments)
        assert said in capsys.readouterr().err


ABSENT = ("adaptbs", "scipy", "fastai", "pandas", "matplotlib", "sklearn", "hypothesis")  # packages
FINDS = "from importlib.util import find_spec; print([name for name in {} if find_spec(name)])"


@pytest.mark.slow
def test_the_quick_form_runs_to_its_end_where_adaptbs_is_not_installed(tmp_path):
    """From a copy of the repository, by a Python that knows torch, numpy and pytest alone."""
    machine = BareMachine(tmp_path, ["torch", "numpy", "pytest"])
    found = machine.run("-c", FINDS.format(ABSENT), folder=tmp_path)
    assert found.stdout.strip() == "[]", found.stdout + found.stderr
    out = tmp_path / "elsewhere" / "gpu.json"
    done = machine.run("-m", "benchmarks.gpu", "--here", "--device", "cpu", "--quick", "--out", str(out))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    written = json.loads(out.read_text())["parts"]
    assert list(written) == list(gpu.PARTS) and all(part["complete"] for part in written.values())
    came = [cell for part in written.values() for cell in part["cells"].values()]
    assert not any("error" in cell for cell in came)
    assert sum("left_out" in cell for cell in came) < 12
    (tests,) = written["tests"]["cells"].values()
    assert "skipped" in tests["result"]["summary"] and not tests["result"]["failed"]
    identity = written["bit_identity"]["cells"].values()
    assert all(cell["result"]["identical"] and cell["result"]["measurements"] for cell in identity)
    near = written["near_limit"]["cells"].values()
    assert all(cell["result"]["reserved_over_allocated"] >= 1 and cell["result"]["steps"] == 8 for cell in near)
    assert all("fit" in cell["result"] for cell in written["step_time"]["cells"].values())
    assert not list(machine.repository.rglob("gpu.json")), "nothing is written elsewhere"


@pytest.mark.slow
def test_each_part_is_a_process_of_its_own(tmp_path):
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--quick", "--out", str(out), "--only", "wordings"]) == 0
    assert json.loads(out.read_text())["parts"]["wordings"]["complete"]


@pytest.mark.parametrize("degrees", [1.3, 2, 7, 60, 3000.5])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8413, 0.95, 0.995])
def test_the_stand_in_for_scipy_is_as_good(degrees, share):
    assert stand_in.quantile(degrees, share) == pytest.approx(stdtrit(degrees, share), rel=1e-6, abs=1e-9)


def test_seconds_to_a_loss():
    curve = [[1.0, 1, 64, 4.0], [2.0, 2, 128, 3.0], [3.0, 3, 192, 2.0]]
    assert [seconds_to(curve, loss) for loss in (5.0, 4.0, 3.5, 2.0, 1.0)] == [1.0, 1.0, 1.5, 3.0, None]


def test_rules_are_compared_by_the_loss_that_64_ends_at():
    def cell(loss: float, seconds: float) -> dict:
        return {"result": {"loss": loss, "seconds": seconds, "curve": [[0.0, 0, 0, 3.0], [seconds, 9, 9, loss]]}}

    table = compared({
        "64, seed 0": cell(2.0, 10.0), "64, seed 1": cell(2.0, 12.0), "adaptive, seed 0": cell(1.0, 8.0),
        "1024, seed 0": cell(2.5, 2.0), "1024, seed 1": {"error": "out of memory"},
    }, slack=0.0)  # fmt: skip
    assert table["64"]["seconds_to_64"] == 11.0
    assert table["adaptive"]["seconds_to_64"] == pytest.approx(4.0)
    assert (table["1024"]["reached"], table["1024"]["seconds_to_64"]) == (0.0, None)
    assert compared({"adaptive, seed 0": cell(1.0, 8.0)}) == {}


LEARNERS = {
    "vectors": (lambda: tasks.mlp(32), tasks.vectors, 16_000, tasks.CLASSES),
    "images": (lambda: tasks.ResNet((1, 1), 8), tasks.images(16), 12_800, tasks.CLASSES),
    "texts": (lambda: tasks.GPT(64, 1, 2), tasks.texts(8), 12_800, tasks.WORDS),
}


@pytest.mark.parametrize("kind", LEARNERS)
def test_what_is_trained_can_be_learned(kind):
    """The held-out loss is below that of chance after some hundred small steps."""
    make_model, make_rows, samples, classes = LEARNERS[kind]
    rows, held_out = (make_rows(n, torch.Generator().manual_seed(i)) for i, n in enumerate((samples, 512)))
    assert not torch.equal(held_out[0][:8], rows[0][:8])
    torch.manual_seed(0)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for batch in zip(*(t.split(64) for t in rows), strict=True):
        step_time.plain_step(model, optimizer, batch)
    assert tasks.loss_of(model.eval(), held_out).item() < math.log(classes) - 0.1


def test_models_are_as_large_as_they_are_called():
    with torch.device("meta"):
        full = {name: task.make_model() for name, task in tasks.tasks(Setup(torch.device("meta"), False)).items()}
    count = {name: sum(p.numel() for p in model.parameters()) / 1e6 for name, model in full.items()}
    assert 23 < count["ResNet-50"] < 26 and 85 < count["GPT-2 small"] < 125 and count["host-bound MLP"] < 1


def test_the_probe_is_compared_with_bisection():
    for row in results(memory.probe):
        assert row["found"] <= row["largest"] == 90 and row["shortfall"] < 0.02
        assert row["trials"] <= 5 and row["ran_out"] <= 1


def only_the_mlp(monkeypatch, module):
    found = {"MLP": models.cases(quick=True)["MLP"]}
    monkeypatch.setattr(module, "cases", lambda quick: found)


def test_what_did_not_fit_ends_where_it_would_have(monkeypatch):
    only_the_mlp(monkeypatch, memory)
    (row,) = results(memory.out_of_memory)
    assert row["ran_out"] == 1 and row["once_each"] and row["apart"] < 1e-6


def test_both_runs_have_the_same_batch_whatever_a_second_probe_finds(monkeypatch):
    only_the_mlp(monkeypatch, memory)
    found, bound = [], memory.bound
    monkeypatch.setattr(memory, "bound", lambda *args: found.append(bound(*args) - len(found)) or found[-1])
    (row,) = results(memory.out_of_memory)
    assert len(found) == 1 and row["apart"] < 1e-6


def test_a_target_beyond_memory_is_trained_to_the_end(monkeypatch):
    small = models.cases(quick=True)["MLP"]
    monkeypatch.setattr(memory, "cases", lambda quick: {"transformer": small, "CNN with BatchNorm": small})
    for row in results(memory.larger_than_memory):
        assert row["once_each"] and row["ran_out"] == 0
        assert row["largest_run"] == pytest.approx(row["fits"], abs=2) and "memory" in row["reasons"]


def test_times_are_compared():
    task = tasks.tasks(SETUP)["host-bound MLP"]
    row = step_time.overhead_of(SETUP, task)
    assert set(row["ratios"]) == set(step_time.KINDS) and all(r["median"] > 0 for r in row["ratios"].values())
    row = step_time.step_time_of(SETUP, task)
    assert set(row["seconds"]) == {16, 32, 64} and "Step" in row["fit"]


def test_an_adaptive_run_is_as_long_as_a_fixed_one():
    task = tasks.tasks(SETUP)["host-bound MLP"]
    fixed, adaptive = (quality.run(SETUP, task, rule, 0) for rule in (64, quality.ADAPTIVE))
    assert fixed["samples"] == 1024 and adaptive["samples"] >= 1024
    assert isinstance(task.make_model(), nn.Module) and min(len(fixed["curve"]), len(adaptive["curve"])) > 5

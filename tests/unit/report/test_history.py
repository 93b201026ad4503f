import csv
import sys

import pytest

from adaptbs.report.history import COLUMNS, History


@pytest.fixture
def history() -> History:
    history = History()
    history.add(event="start", samples=0, batch_size=8)
    history.add(event="measurement", samples=40, batch_size=8, trace=2.5)
    history.add(event="decision", samples=80, batch_size=16, reason="pace")
    history.add(event="decision", samples=160, batch_size=16, reason="max_batch_size")
    return history


def test_columns_are_equally_long_and_none_where_nothing_is_known(history):
    columns = history.to_dict()
    assert tuple(columns) == COLUMNS
    assert {len(column) for column in columns.values()} == {len(history)} == {4}
    assert columns["samples"] == [0, 40, 80, 160]
    assert columns["trace"] == [None, 2.5, None, None]


def test_decisions_leave_the_measurements_out(history):
    assert history.decisions()["samples"] == [0, 80, 160]


def test_it_shows_the_path_of_the_batch_size(history):
    assert repr(history) == "History(4 records, batch size 8 -> 16)"
    assert repr(History()) == "History(0 records, batch size not started)"


def test_a_column_that_does_not_exist_is_refused(history):
    with pytest.raises(ValueError, match=r"no such column: \['bach_size'\]"):
        history.add(bach_size=8)
    assert len(history) == 4


def test_it_is_summed_up_by_its_decisions():
    history = History()
    for event, size in (("start", 33), ("measurement", 32), ("decision", 33), ("decision", 66), ("measurement", 66)):
        history.add(event=event, batch_size=size)
    assert repr(history) == "History(5 records, batch size 33 -> 66)"


def test_records_are_reached_by_position(history):
    assert history[-1] is history.records[-1]
    assert [record["samples"] for record in history] == [0, 40, 80, 160]
    last = history[-2:]
    assert isinstance(last, History) and last.columns == history.columns
    assert last.to_dict()["reason"] == ["pace", "max_batch_size"]
    with pytest.raises(IndexError):
        history[4]
    with pytest.raises(TypeError, match=r"history\['samples'\]: it must be an integer or a slice.*to_dict"):
        history["samples"]


def test_a_slice_keeps_the_views():
    history = History(["adam"])
    history.add(event="start")
    assert history[:1].view_columns == history.view_columns


def test_it_becomes_a_frame(history):
    pandas = pytest.importorskip("pandas")
    frame = history.to_frame()
    assert isinstance(frame, pandas.DataFrame) and tuple(frame.columns) == COLUMNS
    assert frame["batch_size"].tolist() == [8, 8, 16, 16]
    assert len(history[-2:].to_frame()) == 2


def test_without_pandas_it_says_what_to_do(history, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"needs pandas: pip install pandas.*to_dict\(\).*to_csv"):
        history.to_frame()


def test_it_is_written_as_csv(history, tmp_path):
    history.to_csv(tmp_path / "history.csv")
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 4
    assert (rows[1]["trace"], rows[1]["reason"], rows[2]["reason"]) == ("2.5", "", "pace")


def test_a_long_run_keeps_every_decision_and_thins_out_old_measurements(monkeypatch):
    monkeypatch.setattr("adaptbs.report.history.MOST", 100)
    made = History()
    for i in range(10_000):
        made.add(event="decision" if i % 500 == 0 else "measurement", samples=i)
        assert len(made) <= 101
    samples = [record["samples"] for record in made.records]
    assert samples == sorted(samples) and samples[-1] == 9_999
    assert made.decisions()["samples"] == list(range(0, 10_000, 500))


def test_more_decisions_than_records_are_kept_all_the_same(monkeypatch):
    monkeypatch.setattr("adaptbs.report.history.MOST", 100)
    made = History()
    for i in range(1_000):
        made.add(event="decision" if i < 300 else "measurement", samples=i)
    assert len(made.decisions()["samples"]) == 300
    assert len(made) <= 601


def test_a_resumed_run_of_many_decisions_does_not_thin_out_at_once(monkeypatch):
    monkeypatch.setattr("adaptbs.report.history.MOST", 100)
    unbroken, resumed = History(), History()
    for i in range(400):
        unbroken.add(event="measurement" if i % 4 == 0 else "decision", samples=i)
    resumed.load_state_dict(unbroken.state_dict())
    for history in (unbroken, resumed):
        history.add(event="measurement", samples=400)
    assert resumed.records == unbroken.records

import logging
import pickle

from adaptbs.report.history import History
from adaptbs.report.log_hook import LogHook


def recorded(history: History) -> None:
    history.add(event="start", samples=0, batch_size=8)
    history.add(event="measurement", samples=40, batch_size=8, trace=2.5, grad_sq=-1.0, source="halves", reason="asked")
    history.add(
        event="decision", samples=80, batch_size=16, global_batch_size=32, progress=0.5, noise_scale=24.0, low=12.0,
        high=float("inf"), lr_factor=2, reason="pace", doubt="at least low",
    )  # fmt: skip


def test_it_is_given_floats_and_texts_that_are_known_and_the_samples_seen():
    calls = []
    recorded(History(log=lambda values, step: calls.append((step, values))))
    measurement = {"event": "measurement", "trace": 2.5, "grad_sq": -1.0, "source": "halves", "reason": "asked"}
    decision = {
        "event": "decision", "batch_size": 16.0, "global_batch_size": 32.0, "progress": 0.5, "noise_scale": 24.0,
        "low": 12.0, "lr_factor": 2.0, "reason": "pace", "doubt": "at least low",
    }  # fmt: skip
    assert calls == [(40, measurement), (80, decision)]
    assert {type(value) for _, values in calls for value in values.values()} == {float, str}


def test_an_error_in_it_ends_no_run_and_is_warned_of_once(caplog):
    calls = []

    def log(values, step) -> None:
        calls.append(step)
        raise OSError("disk full")

    history = History(log=log)
    with caplog.at_level(logging.WARNING, "adaptbs"):
        recorded(history)
    assert calls == [40] and len(history) == 3
    (warning,) = caplog.records
    assert "log= raised an error, so it is not called again" in warning.message and "disk full" in caplog.text


def test_records_of_a_saved_run_are_not_logged_again():
    history, calls = History(), []
    recorded(history)
    other = History(log=lambda values, step: calls.append(step))
    other.load_state_dict(history.state_dict())
    assert not calls and len(other) == 3


def test_a_pickle_has_no_hook():
    hook = LogHook(lambda values, step: None)
    pickle.loads(pickle.dumps(hook))({"event": "decision", "samples": 0})

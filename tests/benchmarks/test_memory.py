"""The pure parts of benchmarks/memory/search.py, and what its committed result says of the product."""

from benchmarks.common.markdown import load
from benchmarks.memory import search
from tests.simulated_device import random_device


def test_a_search_that_guesses_is_found_out():
    device, _ = random_device(3)
    possible = device.largest(search.MOST)
    guessed = search.outcome(lambda device, start: 2 * possible, 3, "affine")
    assert guessed.fails and not guessed.fits and guessed.tried == () and guessed.shortfall == 0
    low = search.outcome(lambda device, start: possible // 4, 3, "affine")
    assert not low.fails and low.fits and abs(low.shortfall - 0.75) < 4 / possible
    assert search.outcome(lambda device, start: None, 3, "affine").shortfall == 1


def test_what_is_run_is_counted_once_a_size():
    def find(device, start):
        for size in (1, 1, 1, 1 << 30):
            try:
                device.step(size)
            except RuntimeError:
                return 1
        return None

    found = search.outcome(find, 3, "affine")
    assert found.tried == (1, 1 << 30) and found.ran_out == 1 and found.answer == 1


def test_a_summary_adds_up():
    outcomes = [search.outcome(search.adaptbs, seed, "with jumps") for seed in range(50)]
    found = search.summary(outcomes)
    assert found["devices"] == 50 and found["trials_most"] <= 8
    assert found["fails"] == found["never_run"] == found["over_headroom"] == found["no_answer"] == 0


def test_the_committed_result_keeps_what_the_docs_say():
    result = load("memory")
    ours = {row["kind"]: row for row in result["rows"] if row["name"] == "adaptbs"}
    for row in ours.values():
        assert row["devices"] == 1000 and row["fails"] == row["never_run"] == row["over_headroom"] == 0
    affine = ours["affine"]
    assert affine["trials_most"] <= 5 and affine["ran_out_most"] <= 1 and affine["short"] == 0

"""The pure parts of benchmarks/memory.py, and what its committed result says of the product."""

import json
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import memory  # noqa: E402

from tests.simulated_device import random_device  # noqa: E402


def test_a_search_that_guesses_is_found_out():
    device, _ = random_device(3)
    possible = device.largest(memory.MOST)
    guessed = memory.outcome(lambda device, start: 2 * possible, 3, "affine")
    assert guessed.fails and not guessed.fits and guessed.tried == () and guessed.shortfall == 0
    low = memory.outcome(lambda device, start: possible // 4, 3, "affine")
    assert not low.fails and low.fits and abs(low.shortfall - 0.75) < 4 / possible
    assert memory.outcome(lambda device, start: None, 3, "affine").shortfall == 1


def test_what_is_run_is_counted_once_a_size():
    def find(device, start):
        for size in (1, 1, 1, 1 << 30):
            try:
                device.step(size)
            except RuntimeError:
                return 1
        return None

    found = memory.outcome(find, 3, "affine")
    assert found.tried == (1, 1 << 30) and found.ran_out == 1 and found.answer == 1


def test_a_summary_adds_up():
    outcomes = [memory.outcome(memory.adaptbs, seed, "with jumps") for seed in range(50)]
    found = memory.summary(outcomes)
    assert found["devices"] == 50 and found["trials_most"] <= 8
    assert found["fails"] == found["never_run"] == found["over_headroom"] == found["no_answer"] == 0


def test_the_committed_result_keeps_what_the_docs_say():
    result = json.loads((BENCHMARKS / "results" / "memory.json").read_text())
    ours = {row["kind"]: row for row in result["rows"] if row["name"] == "adaptbs"}
    for row in ours.values():
        assert row["devices"] == 1000 and row["fails"] == row["never_run"] == row["over_headroom"] == 0
    affine = ours["affine"]
    assert affine["trials_most"] <= 5 and affine["ran_out_most"] <= 1 and affine["short"] == 0

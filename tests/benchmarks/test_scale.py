"""The laws of cost against size, at small sizes: a count that no other load of the machine can change."""

import pytest

from benchmarks.cost import scale
from benchmarks.cost.counted import Row

# What may grow: named by the words that its rows have in common, and the largest power of the size.
MAY_GROW = {
    ("file", "another sampler"): 1.1,
    ("to make it", "another sampler"): 1.1,
    ("to load it", "another sampler"): 1.1,
    ("to load it", "shuffled"): 1.1,
    ("to build a loader", "shuffled"): 1.1,
    ("to load it", "weighted"): 1.1,
    ("to build a loader", "weighted"): 1.1,
    ("read for the next batch", "a stream"): 1.1,
    ("most memory of a measurement in the step",): 0.6,  # its activations grow with the width
    ("the first, which is checked",): 1.1,
    ("by halves, before the step",): 1.1,
    ("to leave a model as it was",): 1.1,
}


@pytest.fixture(scope="module")
def found() -> dict[str, Row]:
    # fastai, ranks and runs that are measured take seconds
    parts = ("states", "streams", "parameters", "growth", "loaders", "run_length", "models", "batch_norms")
    return {f"{row.what} ({row.unit})": row for row in scale.rows(full=False, only=parts)}


def limit(what: str) -> float:
    if "state_dict()" in what:
        return 0.1
    return max([0.1, *(power for words, power in MAY_GROW.items() if all(word in what for word in words))])


def test_no_cost_grows_that_is_not_said_to(found):
    assert {what: row.law for what, row in found.items() if row.law > limit(what)} == {}


def test_a_billion_rows_cost_as_much_as_a_thousand(found):
    rows = [row for what, row in found.items() if "sequential" in what or "replacement" in what]
    assert len(rows) == 12
    for row in rows:
        assert max(row.figures) == 10**9
        assert row.figures[10**9] <= 100_000  # bytes


def test_the_worst_come_first(found):
    laws = [round(row.law, 1) for row in found.values()]
    assert laws == sorted(laws, reverse=True) and laws[0] > 0.5


def test_loaders_leave_no_object_behind(found):
    (row,) = [row for what, row in found.items() if what.startswith("left behind, the collector")]
    assert max(row.figures.values()) <= 20


def test_a_few_hooks_are_enough(found):
    (row,) = [row for what, row in found.items() if what.startswith("hooks")]
    assert max(row.figures.values()) <= 8

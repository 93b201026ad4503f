"""The hot path, by what it calls: a count that no other load of the machine can change."""

from pathlib import Path

import pytest

from benchmarks.cost import calls


@pytest.fixture(scope="module")
def made() -> dict[str, list[calls.Step]]:
    """The steps of each loop that is given its step time."""
    return {name: calls.steps(**options) for name, options in calls.LOOPS.items() if not options["timed"]}


@pytest.mark.parametrize("loop", [name for name, options in calls.LOOPS.items() if not options["timed"]])
def test_a_step_calls_the_package_no_more_often_than_said(made, loop):
    found = calls.summary(made[loop])
    assert found["plain, first batch size"]["median"] <= found["plain, grown"]["median"] <= 25
    assert found["deciding"]["median"] <= 200
    assert found["deciding"]["steps"] >= 10


def test_calls_are_those_of_the_package_alone(made):
    steps = [step for of_loop in made.values() for step in of_loop]
    files = {name.split(" ")[0] for step in steps for name in step.calls}
    assert files and all(Path(calls.PACKAGE + file).is_file() for file in files)
    assert {step.kind for step in steps} == {None, "plain", "deciding"}

"""The hot path, by what it calls: a count that no other load of the machine can change."""

from pathlib import Path

import pytest

from benchmarks.cost import calls, groups


@pytest.fixture(scope="module")
def made() -> dict[str, list[calls.Step]]:
    """The steps of each loop that is given its step time."""
    return {name: calls.steps(**options) for name, options in calls.LOOPS.items() if not options["timed"]}


@pytest.mark.parametrize("loop", [name for name, options in calls.LOOPS.items() if not options["timed"]])
def test_a_step_calls_the_package_no_more_often_than_said(made, loop):
    found = calls.summary(made[loop])
    # Of a batch that grows within its first measurements no plain step of the first size is left.
    first = found.get("plain, first batch size", {"median": 0})
    assert first["median"] <= found["plain, grown"]["median"] <= 25
    assert found["deciding"]["median"] <= 200
    assert found["deciding"]["steps"] >= 6  # where no step is measured meanwhile


def test_calls_are_those_of_the_package_alone(made):
    steps = [step for of_loop in made.values() for step in of_loop]
    files = {name.split(" ")[0] for step in steps for name in step.calls}
    assert files and all(Path(calls.PACKAGE + file).is_file() for file in files)
    assert {step.kind for step in steps} == {None, "plain", "deciding"}


@pytest.mark.parametrize("make", [groups.torch_groups, lambda n: groups.fastai_groups(n, wrapped=True)])
def test_parameter_groups_add_no_calls(make):
    few, many = make(2), make(50)
    few(), many(), few(), many()
    assert groups.calls(few) == groups.calls(many) <= 14

"""The hot path, by what it calls: a count that no other load of the machine can change."""

from pathlib import Path

import pytest

from benchmarks.cost import calls, groups


@pytest.mark.parametrize(("scheduled", "plain"), [(False, 25), (True, 28)])
def test_a_step_calls_the_package_no_more_often_than_said(scheduled, plain):
    found = calls.summary(list(calls.steps(scheduled=scheduled, timed=False)))
    assert found["plain, first batch size"]["median"] <= found["plain, grown"]["median"] <= plain
    assert found["deciding"]["median"] <= 200
    assert found["deciding"]["steps"] >= 10


def test_calls_are_those_of_the_package_alone():
    made = list(calls.steps(scheduled=False, timed=False))
    files = {name.split(" ")[0] for step in made for name in step.calls}
    assert files and all(Path(calls.PACKAGE + file).is_file() for file in files)
    assert {step.kind for step in made} == {None, "plain", "deciding"}


@pytest.mark.parametrize("made", [groups.torch_groups, lambda n: groups.fastai_groups(n, wrapped=True)])
def test_parameter_groups_add_no_calls(made):
    few, many = made(2), made(50)
    few(), many()
    assert groups.calls(few) == groups.calls(many) <= 14

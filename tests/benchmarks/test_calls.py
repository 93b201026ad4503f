"""The hot path, by what it calls: a count that no other load of the machine can change."""

import gc
from pathlib import Path

import pytest
from fastai.basics import Callback, CancelValidException, DataLoaders, Learner
from fastai.basics import DataLoader as FastaiLoader
from fastai.callback import schedule  # noqa: F401  (adds fit_one_cycle)

from adaptbs.fastai import AdaptiveBatchSize
from benchmarks.cost import calls, counted, groups
from benchmarks.cost.measuring import tabular
from benchmarks.cost.overhead import Rows

STEPS = 60  # of an epoch


class NoValidation(Callback):
    def before_validate(self):
        raise CancelValidException


@pytest.fixture(scope="module")
def made() -> dict[str, list[calls.Step]]:
    """The steps of each loop that is given its step time."""
    gc.collect()  # loaders of other tests may be in the middle of an iteration, and watch the steps of all optimizers
    return {name: calls.steps(**options) for name, options in calls.LOOPS.items() if not options["timed"]}


@pytest.mark.parametrize("loop", [name for name, options in calls.LOOPS.items() if not options["timed"]])
def test_a_step_calls_the_package_no_more_often_than_said(made, loop):
    found = calls.summary(made[loop])
    # Of a batch that grows within its first measurements no plain step of the first size is left.
    first = found.get("plain, first batch size", {"median": 0})
    assert first["median"] <= found["plain, grown"]["median"] <= 25
    assert found["deciding"]["median"] <= 205
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


@pytest.mark.parametrize(("base", "most"), [(64, 77), (16, 89)])
def test_a_step_of_a_learner_calls_the_package_no_more_often_than_said(base, most):
    """Of a fit by one-cycle, which changes the momentum at every step; `base` 16 is the step of a grown batch."""

    def epochs(n: int) -> int:
        model, loss_func, _ = tabular(64, batch_norm=False)
        _, _, data = tabular(64 * STEPS)
        loaders = DataLoaders(*(FastaiLoader(Rows(data), bs=64, shuffle=shuffled) for shuffled in (True, False)))
        learn = Learner(loaders, model, loss_func=loss_func, cbs=NoValidation())
        adaptive = AdaptiveBatchSize(base_batch_size=base, max_batch_size=64, overhead=0, budget="epochs")
        with learn.no_bar(), learn.no_logging():
            return counted.calls(lambda: learn.fit_one_cycle(n, 1e-3, cbs=adaptive))

    assert (epochs(3) - epochs(2)) / STEPS <= most

"""The one-cycle policy in closed form: by hand, against fastai's, against torch's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from adaptbs import one_cycle

SHARES = [0.0, 0.01, 0.1, 0.2499, 0.25, 0.3, 0.5, 0.77, 0.999, 1.0]


def test_start_peak_end_and_half_way_between():
    settings = {"pct_start": 0.25, "div": 4.0, "div_final": 8.0}
    at = [one_cycle(p, 8.0, **settings) for p in (0.0, 0.125, 0.25, 0.625, 1.0)]
    assert at == pytest.approx([2.0, 5.0, 8.0, 4.5, 1.0])


@pytest.mark.parametrize("settings", [{}, {"pct_start": 0.4, "div": 10.0, "div_final": 1e3}, {"pct_start": 0.01}])
def test_it_is_fastais(settings):
    from fastai.callback.schedule import combined_cos

    values = {"pct_start": 0.25, "div": 25.0, "div_final": 1e5} | settings
    theirs = combined_cos(values["pct_start"], 0.02 / values["div"], 0.02, 0.02 / values["div_final"])
    for p in SHARES:  # (their positions are float32)
        assert one_cycle(p, 0.02, **settings) == pytest.approx(theirs(p), rel=1e-4, abs=1e-9), p


def test_its_defaults_are_those_of_fit_one_cycle():
    import inspect

    from fastai.basics import Learner
    from fastai.callback import schedule  # noqa: F401  (adds fit_one_cycle)

    theirs = inspect.signature(Learner.fit_one_cycle).parameters
    ours = inspect.signature(one_cycle).parameters
    for name in ("pct_start", "div", "div_final"):
        assert ours[name].default == theirs[name].default


@pytest.mark.parametrize("steps", [4, 10, 101])
@pytest.mark.parametrize("pct_start", [0.3, 0.5])
def test_it_is_torchs(steps, pct_start):
    div, final = 20.0, 50.0
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.1, total_steps=steps, pct_start=pct_start, div_factor=div, final_div_factor=final
    )
    peak = (pct_start * steps - 1) / (steps - 1)
    for i in range(steps):
        p = i / (steps - 1)
        (group,) = optimizer.param_groups
        ours = one_cycle(p, 0.1, pct_start=peak, div=div, div_final=div * final)
        assert ours == pytest.approx(group["lr"], rel=1e-9), i
        momentum = one_cycle(p, 0.85, pct_start=peak, div=0.85 / 0.95, div_final=0.85 / 0.95)
        assert momentum == pytest.approx(group["momentum"], rel=1e-9), i
        optimizer.step()
        if i < steps - 1:
            scheduler.step()


def test_outside_the_run_it_is_that_of_the_nearer_end():
    assert one_cycle(-0.1, 1.0) == one_cycle(0.0, 1.0)
    assert one_cycle(1 + 1e-9, 1.0) == one_cycle(1.0, 1.0)


@pytest.mark.parametrize("pct_start, expected", [(0.0, (1.0, 0.5005)), (1.0, (0.04, 0.52))])
def test_a_peak_at_either_end(pct_start, expected):
    at = [one_cycle(p, 1.0, pct_start=pct_start, div_final=1e3) for p in (0.0, 0.5)]
    assert at == pytest.approx(expected)
    assert one_cycle(1.0, 1.0, pct_start=1.0) == 1.0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"pct_start": 1.5}, "pct_start=1.5"),
        ({"pct_start": math.nan}, "pct_start=nan"),
        ({"div": 0.0}, "div=0.0"),
        ({"div_final": -1.0}, "div_final=-1.0"),
        ({"p": math.nan}, "p=nan"),
    ],
)
def test_what_cannot_be_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        one_cycle(**{"p": 0.5, "lr_max": 1.0} | wrong)

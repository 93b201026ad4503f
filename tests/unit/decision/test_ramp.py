import math
from dataclasses import replace
from pathlib import Path

import pytest

from adaptbs.decision.policy import FLOOR_OF_EPOCHS, efficiency
from adaptbs.decision.ramp import EARLIEST, LATEST, PLANNED, Ramp, geometric, next_on_ramp
from adaptbs.types import NoiseScale

FREE = Ramp((64, 128, 256, 512))
PLAN = Ramp((64, 128, 256), (0, 1000, 3000), shift=2)
KNOWN = NoiseScale(grad_sq=1.0, trace=1e6, low=1e6, high=1e6, cautious=1e6, measurements=9)
SMALL = replace(KNOWN, cautious=1.0)


def size_and_reason(ramp, size, seen, noise_scale=KNOWN, news=9):
    decision = next_on_ramp(ramp, size, seen, noise_scale, news, critical=4.0)
    return decision.batch_size, decision.reason


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        ((64, 512, 2, 8), (64, 128, 256, 512)),
        ((64, 500, 2, 8), (64, 128, 256)),
        ((48, 200, 1.5, 16), (48, 64, 112, 160)),  # 72, 108 and 162 in whole 16s
        ((8, 32, 1.1, 8), (8, 16, 24, 32)),
        ((64, 64, 2, 8), (64,)),
    ],
)
def test_sizes_grow_by_a_factor_in_whole_multiples(arguments, sizes):
    assert geometric(*arguments) == sizes


def test_where_a_planned_size_may_begin():
    assert [PLAN.planned(seen) for seen in (0, 999, 1000, 2999, 3000, 9999)] == [0, 0, 1, 1, 2, 2]
    assert [PLAN.earliest(seen) for seen in (0, 499, 500, 1499, 1500)] == [0, 0, 1, 1, 2]
    assert [PLAN.latest(seen) for seen in (1999, 2000, 5999, 6000)] == [0, 1, 1, 2]


def test_without_bounds_a_size_may_begin_at_any_time():
    ramp = replace(PLAN, shift=math.inf)
    assert ramp.earliest(1) == 2 and ramp.latest(1e9) == 0


def test_without_a_plan_sizes_may_begin_at_any_time():
    assert (FREE.planned(1e9), FREE.earliest(0), FREE.latest(1e9)) == (0, 3, 0)


@pytest.mark.parametrize("noise_scale", [None, replace(KNOWN, measurements=3), replace(KNOWN, cautious=0.0)])
def test_what_is_not_known_follows_the_plan_or_holds(noise_scale):
    held = "unresolved" if noise_scale and noise_scale.cautious <= 0 else "few measurements"
    assert size_and_reason(FREE, 128, 500, noise_scale) == (128, held)
    assert size_and_reason(PLAN, 64, 500, noise_scale) == (64, PLANNED)
    assert size_and_reason(PLAN, 64, 3000, noise_scale) == (256, PLANNED)
    assert size_and_reason(PLAN, 128, 500, noise_scale) == (128, PLANNED), "a batch that grew early stays"


def test_a_size_counts_whose_samples_bring_enough():
    for size in (128, 256, 512):
        # The noise scale at which the samples of this size bring just the floor.
        phi = (FLOOR_OF_EPOCHS * size - 64) / (1 - FLOOR_OF_EPOCHS)
        assert efficiency(phi, size, 64) == pytest.approx(FLOOR_OF_EPOCHS)
        enough, too_little = (replace(KNOWN, cautious=phi / 4.0 * share) for share in (1.01, 0.99))
        assert size_and_reason(FREE, size // 2, 0, enough) == (size, "noise scale")
        assert size_and_reason(FREE, size // 2, 0, too_little) == (size // 2, "noise scale")


def test_one_size_at_a_time_and_on_new_measurements():
    assert size_and_reason(FREE, 64, 0) == (128, "pace")
    assert size_and_reason(FREE, 64, 0, news=0) == (64, "nothing new")
    assert size_and_reason(FREE, 512, 0) == (512, "noise scale")


def test_never_smaller():
    assert size_and_reason(FREE, 512, 0, SMALL) == (512, "noise scale")


def test_brought_forward_and_delayed_within_bounds():
    assert size_and_reason(PLAN, 64, 499) == (64, EARLIEST)
    assert size_and_reason(PLAN, 64, 500) == (128, EARLIEST)
    assert size_and_reason(PLAN, 128, 1499) == (128, EARLIEST)
    assert size_and_reason(PLAN, 128, 1500) == (256, "noise scale")
    assert size_and_reason(PLAN, 64, 1999, SMALL) == (64, "noise scale")
    assert size_and_reason(PLAN, 64, 2000, SMALL) == (128, LATEST)
    assert size_and_reason(PLAN, 128, 6000, SMALL) == (256, LATEST)


def test_a_plan_needs_no_news():
    assert size_and_reason(PLAN, 64, 1000, news=0) == (128, EARLIEST)
    assert size_and_reason(PLAN, 64, 3000, news=0) == (256, "noise scale")


def test_a_shift_of_1_is_the_plan_whatever_is_known():
    ramp = replace(PLAN, shift=1)
    for noise_scale in (None, KNOWN, SMALL):
        sizes = [size_and_reason(ramp, 64, seen, noise_scale)[0] for seen in (999, 1000, 2999, 3000)]
        assert sizes == [64, 128, 128, 256]


def test_the_reasons_are_told():
    page = (Path(__file__).parents[3] / "docs" / "big_training.md").read_text()
    assert all(f"| `{reason}` |" in page for reason in (PLANNED, EARLIEST, LATEST))

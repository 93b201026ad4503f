"""Noise scale -> decision: the growth rule, the progress of a run, and when a decision is due."""

from .policy import (
    TARGETS,
    Situation,
    counted_over_simple,
    critical_over_simple,
    decide,
    early_limit,
    efficiency_floor,
    goodput,
    goodput_optimum,
    largest_at_constant_rate,
    largest_batch_size,
    nearest_power_of_2,
    reference_batch_size,
)
from .progress import ROUNDING, Progress, fixed_batches, sample_efficiency
from .ramp import Ramp, geometric, next_on_ramp
from .timer import NEWS, DecisionTimer, is_urgent

__all__ = [
    "NEWS",
    "ROUNDING",
    "TARGETS",
    "DecisionTimer",
    "Progress",
    "Ramp",
    "Situation",
    "counted_over_simple",
    "critical_over_simple",
    "decide",
    "early_limit",
    "efficiency_floor",
    "fixed_batches",
    "geometric",
    "goodput",
    "goodput_optimum",
    "is_urgent",
    "largest_at_constant_rate",
    "largest_batch_size",
    "nearest_power_of_2",
    "next_on_ramp",
    "reference_batch_size",
    "sample_efficiency",
]

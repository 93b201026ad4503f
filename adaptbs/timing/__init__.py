"""Seconds of steps and of measurements, and how much measuring may cost."""

from .clock import Clock
from .device_clock import PER_STEP, PER_STEP_OF_A_LEARNER, Moment, Stopwatch
from .duty_cycle import TRY
from .overhead import OverheadBudget, Spent
from .step_time import ENOUGH, KEEP, WARM_UP, StepTime, StepTimes, Time

__all__ = [
    "ENOUGH",
    "KEEP",
    "PER_STEP",
    "PER_STEP_OF_A_LEARNER",
    "TRY",
    "WARM_UP",
    "Clock",
    "Moment",
    "OverheadBudget",
    "Spent",
    "StepTime",
    "StepTimes",
    "Stopwatch",
    "Time",
]

"""A clock for AdaptiveDataLoader that is told what steps take, so that a CPU can train for a GPU's step times."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adaptbs.timing.clock import MEASURING, MEASURING_IN_STEP, Timings
from adaptbs.timing.step_time import StepTime

# Seconds that a decision is charged. `benchmarks.cost.deciding` finds .6 to .7 ms on a CPU, in the mean. It was 2 ms at
# first, and 1 ms until decisions were made with fewer operations.
DECIDING = 0.7e-3
HICCUP, HICCUPS = 3.0, 0.01  # now and then a step takes this many times as long; how often, as a share of steps


class ModelClock:
    """An `adaptbs.timing.clock.Clock`: what the run is shown is noisy, what it is charged is not.

    Args:
        step_time: seconds of a step, to be found out by the run from noisy ones.
        noise: standard deviation of the logarithm of a step's seconds.
        seed: of the noise.

    Attributes:
        seconds: everything charged so far, without noise: steps, measurements, decisions.
    """

    per_step = aftermath = 0.0  # where a device computes, the host does this meanwhile

    def __init__(self, step_time: StepTime, *, noise: float = 0.1, seed: int = 0) -> None:
        self._step_time, self._noise, self._random = step_time, noise, random.Random(seed)
        self._timings = Timings()
        self._measures = False
        self.seconds = 0.0

    def start(self) -> None:
        return None

    def step(self, batch_size: int) -> None:
        seconds = self._step_time(batch_size)
        self._timings.steps.append((batch_size, self._charge(seconds)))
        if self._measures:
            self._timings.measurements.append(self._charge(MEASURING_IN_STEP * seconds))
            self._measures = False

    @contextmanager
    def measuring(self, batch_size: int) -> Iterator[None]:
        yield
        self._timings.measurements.append(self._charge(MEASURING * self._step_time(batch_size)))

    def measuring_step(self) -> None:
        self._measures = True

    @contextmanager
    def deciding(self) -> Iterator[None]:
        yield
        self.seconds += DECIDING
        self._timings.deciding += DECIDING

    def read(self) -> Timings:
        timings, self._timings = self._timings, Timings()
        return timings

    def _charge(self, seconds: float) -> float:
        """What a clock would show of them."""
        self.seconds += seconds
        hiccup = HICCUP if self._random.random() < HICCUPS else 1.0
        return seconds * hiccup * self._random.lognormvariate(0, self._noise)


def inject(loader: Any, clock: ModelClock) -> None:
    """Let an AdaptiveDataLoader that has not begun go by this clock."""
    loader.training_run.use_clock(clock)

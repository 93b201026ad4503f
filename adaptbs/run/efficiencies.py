"""Effective samples of one sample, by the size that its batch was cut at."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..hyperparameters import HyperparameterScaler
from ..types import Scale
from .rules import ByCutSize


class SampleEfficiencies(ByCutSize[float]):
    """By the noise scale; but a step counts for no more than its learning rate, where that is limited.

    Example: progress is counted in steps of 64 samples, and a step of SGD at a batch of 512 brings 4 of them by the
    noise scale, 1/2 a sample. Its learning rate has been raised to twice that of a batch of 64 so far. So the step
    counts as 2, and a sample as 1/4.

    Args:
        by_noise: a method: effective samples of one sample by the noise scale, of a cut size.
        reference: R, the batch that progress is counted in, samples.
        scales: what becomes of the hyperparameters, by cut size.
    """

    def __init__(self, by_noise: Callable[[int], float], reference: int, scales: ByCutSize[Scale]) -> None:
        super().__init__(by_noise)
        self._reference, self._scales = reference, scales
        self._scaler: HyperparameterScaler | None = None

    def follow(self, scaler: HyperparameterScaler) -> None:
        """Count by the learning rates that this one sets."""
        self._scaler = scaler

    def __getitem__(self, cut_size: int) -> float:
        by_noise = super().__getitem__(cut_size)
        factor = self._scaler.limited_factor if self._scaler is not None else None
        if factor is None:
            return by_noise
        at_reference = self._scales[self._reference]
        if at_reference.longest == math.inf:  # the factor is that of a run before, or of steps before a hold
            return by_noise
        steps = max(1.0, factor / at_reference.lr_factor)
        return min(by_noise, steps * self._reference / cut_size)

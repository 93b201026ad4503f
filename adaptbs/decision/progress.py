"""How far a run is: samples against its plan, or gain by gain; when it has to end, and what it can still afford."""

from __future__ import annotations

import math
from typing import Any

from ..types import ENOUGH, NoiseScale
from .policy import efficiency

WITHIN = 1e-9  # relative; sums of many floats end this near to their plan


class Progress:
    """Counts samples, and what they are worth.

    Without `max_extra` a sample is worth one, and a run ends after those that were planned. With it a sample is worth
    its `rate`, and the run ends when that has come to the plan: a larger batch, whose samples bring less, is given more
    of them.

    Args:
        epoch_samples: samples of an epoch.
        epochs: planned; None where that is not known, then one epoch stands for the run.

    Attributes:
        max_extra: how many more samples than planned the run may take, as a share of them; None: a sample is a sample.
        samples: delivered in the run.
        epoch: the one under way or next, from 0.
        epoch_position: samples delivered in this epoch; 0 between epochs.
        worth: of all samples delivered, in samples of the reference batch: where the schedule is.
    """

    def __init__(self, epoch_samples: int, epochs: int | None) -> None:
        self.epoch_samples, self.epochs = epoch_samples, epochs
        self.planned = epoch_samples * (epochs or 1)
        self.max_extra: float | None = None
        self.samples = self.epoch = self.epoch_position = 0
        self.worth = 0.0

    @property
    def limit(self) -> float:
        """The samples that the run may take at most; inf where its length is not known."""
        return math.floor(self.planned * (1 + (self.max_extra or 0))) if self.epochs else math.inf

    @property
    def most_epochs(self) -> int:
        """The epochs that the run may take at most, the last of them perhaps a short one."""
        return math.ceil(self.limit / self.epoch_samples)

    @property
    def share(self) -> float:
        """Of the run, 0..1; of an epoch, and above 1, where the run's length is not known."""
        share = self.worth / self.planned
        return min(share, 1.0) if self.epochs else share

    @property
    def complete(self) -> bool:
        """Whether the run is to end here. Never by itself where samples are samples: there the user counts epochs."""
        if self.max_extra is None:
            return False
        return self.worth >= (1 - WITHIN) * self.planned or self.samples >= self.limit

    @property
    def under_way(self) -> bool:
        """Whether an epoch has begun and not ended."""
        return self.epoch_position > 0

    @property
    def required(self) -> float | None:
        """What a sample has to be worth from here on, on average, for the run to end within its limit; None: one."""
        if self.max_extra is None:
            return None
        left = self.limit - self.samples
        return (self.planned - self.worth) / left if left > 0 else 1.0

    def deliver(self, nominal: int, length: int, position: int, rate: float) -> tuple[float, float]:
        """Count a batch; where the schedule was before it and is after it, samples (of the epoch, or of the plan).

        Args:
            nominal: the size that it was cut at, samples.
            length: its samples.
            position: samples of this epoch, it included.
            rate: what one of its samples is worth.
        """
        self.epoch_position = position
        if self.max_extra is None:
            self.samples, self.worth = self.samples + length, self.worth + length
            return position - length, position
        # Never less than lets the schedule end: a run that is cut off before its learning rate has come down is worse
        # than one whose schedule hurries. As many whole batches as still fit have to do.
        fit = max(length, (self.limit - self.samples) // nominal * nominal)
        before, left = self.worth, self.planned - self.worth
        self.samples += length
        self.worth += min(length * max(rate, left / fit), left)
        return before, self.worth

    def end_epoch(self) -> None:
        """No epoch is under way any more, also where one was broken off."""
        self.epoch += self.epoch_position > 0
        self.epoch_position = 0

    def skip(self, epochs: int) -> None:
        """Begin after so many epochs."""
        self.epoch, self.samples = epochs, epochs * self.epoch_samples
        self.worth = float(self.samples)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _REMEMBERED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _REMEMBERED:
            setattr(self, name, state[name])


def rate(batch_size: int, reference: int, noise_scale: NoiseScale | None, critical: float) -> float:
    """What a sample is worth at this batch size, in samples of the reference batch R: (phi + R)/(phi + B).

    B times that is AdaScale's gain of one step, (1 + phi/R)/(1 + phi/B) steps of R samples (Johnson et al. 2020,
    arXiv:2007.05105). phi is the critical batch, `critical` times the point estimate: counting by the cautious limit,
    on which decisions are made, would charge its caution twice. Where there is none, because |G|^2 is lost in noise,
    every sample counts; where nothing is known, a batch counts as one of the reference, unless it is smaller.
    """
    if noise_scale is None or noise_scale.measurements < ENOUGH:
        return min(1.0, reference / batch_size)
    simple = noise_scale.simple
    return 1.0 if simple is None else efficiency(critical * simple, batch_size, reference)


_REMEMBERED = ("samples", "epoch", "epoch_position", "worth")


ROUNDING = 1e-6  # samples: sums of shares come this near to whole ones


def fixed_batches(samples: float, start: int, epoch_samples: int, epoch_steps: int) -> int:
    """How many batches the fixed run has delivered after so many samples of the plan."""
    epochs, within = divmod(samples + ROUNDING, epoch_samples)
    return int(epochs) * epoch_steps + min(int(within // start), epoch_steps)

"""Progress of a run in samples or effective samples, and its end."""

from __future__ import annotations

import math
from typing import Any

from ..types import ENOUGH, NoiseScale
from .policy import efficiency

WITHIN = 1e-9  # relative; sums of many floats end this near to their plan
ROUNDING = 1e-6  # samples; sums of shares come this near to whole ones


class Progress:
    """Counts the samples of a run, and its effective samples.

    A budget of epochs counts every sample as one and leaves the end to the user: an epoch is a pass over the data. A
    budget of progress weights each sample by its efficiency and ends the run when the effective samples have come to
    the plan: a larger batch, whose samples bring less, is given more of them. An epoch is then an equal share of the
    plan, which may take more than one pass.

    Args:
        epoch_samples: samples of a pass, and effective samples of an epoch.
        epochs: planned epochs, no whole number where the run ends within one; None where the length is not known, then
            one epoch stands for the run.

    Attributes:
        planned: effective samples that the run is to make.
        max_extra: samples that the run may take beyond the plan, as a share of it; None under a budget of epochs.
        limit: the most samples that the run may take; inf where its length is not known.
        samples: samples that the loop has come to work on.
        effective_samples: the same, weighted by their efficiency: the schedule's position.
        planless: True where an epoch has turned out longer than the plan says, so that no progress can end the run.
        epoch: number of the epoch under way or next, from 0.
        epoch_end: effective samples at which that epoch ends; counts under a budget of progress.
    """

    def __init__(self, epoch_samples: int, epochs: float | None) -> None:
        self.epoch_samples = epoch_samples
        self.max_extra: float | None = None
        self.plan(epochs)
        self.samples = self.epoch = 0
        self.effective_samples, self.planless = 0.0, False
        self.epoch_end = float(epoch_samples)

    def plan(self, epochs: float | None) -> None:
        """Plan a run of `epochs` epochs, also after it has begun. None: its length is not known."""
        self.epochs, self.planned = epochs, round(self.epoch_samples * (epochs or 1))
        extra = 1 if self.max_extra is None else 1 + self.max_extra
        self.limit: float = math.floor(self.planned * extra) if epochs else math.inf

    def end_by_progress(self, max_extra: float) -> None:
        """Count effective samples from here on, and end the run by them, unless it is `planless`."""
        if self.planless:
            return
        self.max_extra = max_extra
        self.plan(self.epochs)

    def end_by_epochs(self) -> None:
        """Leave the end to the user from here on, as the plan was made for epochs of another length."""
        self.planless, self.max_extra = True, None
        self.plan(self.epochs)

    @property
    def by_shares(self) -> bool:
        """True if an epoch is a share of the run's progress, and not a pass over the data."""
        return self.max_extra is not None

    def begin_epoch(self) -> None:
        """Give the epoch that comes its share of the run."""
        self.epoch_end = share_end(self.epoch, self.effective_samples, self.epoch_samples)

    def go_on_to(self, epoch_end: float) -> None:
        """Go on with an epoch that ends there, inside of which another one has ended."""
        self.epoch_end = epoch_end

    @property
    def epoch_complete(self) -> bool:
        """True once the epoch has its share. Always False under a budget of epochs, where a pass is an epoch."""
        return self.max_extra is not None and (self._has_come_to(self.epoch_end) or self.complete)

    def samples_left(self, efficiency: float) -> float:
        """Samples that the epoch under way still takes, where a sample brings `efficiency` effective ones."""
        return max(self.epoch_end - self.effective_samples, 0.0) / max(efficiency, self.required or 0.0)

    @property
    def share(self) -> float:
        """Share of the run done, 0..1; share of an epoch, and above 1, where the run's length is not known."""
        share = self.effective_samples / self.planned
        return min(share, 1.0) if self.epochs else share

    @property
    def complete(self) -> bool:
        """True if the run ends here. Always False under a budget of epochs, which the user counts."""
        if self.max_extra is None:
            return False
        return self._has_come_to(self.planned) or self.samples >= self.limit

    def _has_come_to(self, planned: float) -> bool:
        return self.effective_samples >= (1 - WITHIN) * planned

    @property
    def required(self) -> float | None:
        """The mean efficiency that the rest of the run needs to end within its limit; None under a budget of epochs."""
        if self.max_extra is None:
            return None
        left = self.limit - self.samples
        return (self.planned - self.effective_samples) / left if left > 0 else 1.0

    def count(
        self, cut_size: int, num_samples: int, epoch: int, position: int, efficiency: float
    ) -> tuple[float, float, bool]:
        """Count a batch; return the schedule's position before and after it, and whether its epoch's share is done.

        The position is in samples of the epoch under a budget of epochs, else in effective samples of the plan.

        Args:
            cut_size: the size in force when the batch was cut, samples.
            num_samples: the batch's samples.
            epoch: the epoch that the batch belongs to.
            position: samples of this epoch so far, the batch included.
            efficiency: effective samples of one sample.
        """
        self.epoch = epoch
        if self.max_extra is None:
            self.samples, self.effective_samples = self.samples + num_samples, self.effective_samples + num_samples
            return position - num_samples, position, False
        # A run that is cut off before its learning rate has come down is worse than one whose schedule hurries. So a
        # sample counts at least as much as lets the schedule end with the whole batches that still fit, or with what
        # is left where not even one does.
        fit = max(num_samples, (self.limit - self.samples) // cut_size * cut_size or self.limit - self.samples)
        before, left = self.effective_samples, self.planned - self.effective_samples
        self.samples += num_samples
        # No batch brings more than an epoch, so that no epoch is left without one.
        self.effective_samples += min(num_samples * max(efficiency, left / fit), left, self.epoch_samples)
        done = self.effective_samples >= (1 - WITHIN) * self.epoch_end or self.samples >= self.limit
        return before, self.effective_samples, done

    def set_epoch(self, epoch: int) -> None:
        """Let the next epoch be this one."""
        self.epoch = epoch

    def skip(self, epochs: int, samples: int = 0) -> None:
        """Begin after the first `epochs` epochs, and `samples` samples of the next."""
        self.epoch, self.samples = epochs, epochs * self.epoch_samples + samples
        self.effective_samples = float(self.samples)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _REMEMBERED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _REMEMBERED:
            setattr(self, name, state[name])


_REMEMBERED = ("samples", "epoch", "effective_samples", "planless", "epoch_end")


def share_end(epoch: int, done: float, share: float) -> float:
    """Effective samples at which an epoch ends: with its share of the run, or with the next one where that is done.

    Shares are equal. The batch that crosses the end of one belongs to it, and what it brings beyond counts for the
    next. An epoch that was broken off leaves what it lacks to the next; one that is begun with its share already done,
    as where a loop's body goes over the data twice, takes the share that follows.

    Args:
        epoch: number of the epoch, from 0.
        done: effective samples of the run so far.
        share: effective samples of an epoch.
    """
    return share * (max(epoch, math.floor(done * (1 + WITHIN) / share)) + 1)


def sample_efficiency(batch_size: int, reference: int, noise_scale: NoiseScale | None, critical: float) -> float:
    """Effective samples of one sample at this batch size: (phi + R)/(phi + B), relative to the reference batch R.

    B times that is AdaScale's gain of one step, (1 + phi/R)/(1 + phi/B) steps of R samples (Johnson et al. 2020,
    arXiv:2007.05105). phi is the critical batch size, `critical` times the point estimate. A lower limit, where a
    decision goes by one, would charge its caution twice. Where |G|^2 is lost in noise, every sample counts. Where
    nothing is known, a batch counts as one of the reference, unless it is smaller.
    """
    if noise_scale is None or noise_scale.measurements < ENOUGH:
        return min(1.0, reference / batch_size)
    simple = noise_scale.simple
    return 1.0 if simple is None else efficiency(critical * simple, batch_size, reference)


def fixed_batches(samples: float, start: int, epoch_samples: int, epoch_steps: int) -> int:
    """Batches that the fixed run has delivered after `samples` samples of the plan.

    Args:
        samples: samples of the plan.
        start: the fixed run's batch size, samples.
        epoch_samples: samples of an epoch.
        epoch_steps: batches of an epoch.
    """
    epochs, within = divmod(samples + ROUNDING, epoch_samples)
    return int(epochs) * epoch_steps + min(int(within // start), epoch_steps)

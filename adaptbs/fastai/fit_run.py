"""The training run of a fit, and where its schedule is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..checks import check_model
from ..decision import ROUNDING
from ..model import OF_A_LEARNER, BatchLoss
from ..run import Settings, TrainingRun, TrialStep
from ..timing import PER_STEP_OF_A_LEARNER
from .hyperparameters import is_adaptive
from .learner import (
    accumulation,
    batch_loss,
    check_alone,
    check_loader,
    epoch_samples,
    is_language_model,
    splitting,
    standalone_loss,
    validation_batch_size,
)
from .other_callbacks import has_schedule


@dataclass(frozen=True)
class FitPlan:
    """The fit as a fixed batch makes it.

    Attributes:
        epochs: that were asked for.
        start: samples of a batch.
        epoch_samples: samples of an epoch.
        epoch_steps: batches of an epoch.
    """

    epochs: int
    start: int
    epoch_samples: int
    epoch_steps: int

    def share_after(self, samples: float, epochs_before: int) -> float:
        """Share of the schedule that is done, 0..1: fastai's `pct_train`, which counts whole batches.

        Example: 2 epochs of 100 samples in batches of 8 are 13 batches each. After 80 samples of the first epoch it is
        80 / (8 x 13) / 2 = 0.385, and after all 100 it is 1/2.

        Args:
            samples: samples since the epoch that `epochs_before` has come to.
            epochs_before: epochs that were done before these samples.
        """
        epochs, within = divmod(samples + ROUNDING, self.epoch_samples)
        share = min(within / (self.start * self.epoch_steps), 1.0)
        return min((epochs_before + epochs + share) / self.epochs, 1.0)


class FitRun(NamedTuple):
    """The training run of a fit, and what else was found out about its Learner.

    Attributes:
        run: the training run.
        plan: the fit as a fixed batch makes it.
        standalone: the loss of a batch that is to be called between two batches, outside of events.
        validated_by: samples of a validation batch; None where it is not to be compared with the training batch.
    """

    run: TrainingRun
    plan: FitPlan
    standalone: BatchLoss
    validated_by: int | None


def check_fit(learn: Any, dl: Any, callback: type) -> None:
    """Raise an error that says what is wrong, where adaptbs cannot train this Learner by this loader."""
    check_loader(dl)
    check_model(learn.model)
    check_alone(learn, callback)
    if not any(p.requires_grad for p in learn.model.parameters()):
        raise ValueError("the model has no trainable parameter: unfreeze it, or train without AdaptiveBatchSize")


def run_of_fit(learn: Any, dl: Any, settings: Settings) -> FitRun:
    """The training run of the fit that begins.

    Args:
        learn: the Learner, in its first epoch.
        dl: its training loader.
        settings: the callback's.
    """
    model, opt = learn.model, learn.opt
    start = accumulation(learn, dl.bs) if settings.may_grow else dl.bs
    samples, certain = epoch_samples(dl), is_language_model(dl)
    if start != dl.bs:
        _check_accumulated(start, dl.bs, settings.max_batch_size, samples or None)
    given, split = settings.split is not None or certain, splitting(settings.split, certain=certain)
    standalone = standalone_loss(learn, split, given)
    in_pieces = start != dl.bs or certain
    run = TrainingRun(
        settings,
        model,
        getattr(opt, "opt", opt),
        batch_size=start,
        epoch_samples=samples,
        adaptive=is_adaptive(opt),
        loss=BatchLoss(batch_loss=batch_loss(learn), called=OF_A_LEARNER, split=split, split_given=given),
        trial=TrialStep(model, standalone),
        micro_batch_size=dl.bs if in_pieces else None,
        per_step=PER_STEP_OF_A_LEARNER,
    )
    if not has_schedule(learn):
        run.controller.rules.expect_no_decay()
    epoch_steps = len(dl) if start == dl.bs else -(-samples // start)
    plan = FitPlan(learn.n_epoch, start, samples, epoch_steps)
    return FitRun(run, plan, standalone, None if in_pieces else validation_batch_size(learn))


def _check_accumulated(start: int, bs: int, most: int | None, samples: int | None) -> None:
    """Raise ValueError if GradientAccumulation makes steps of more samples than there may be."""
    limits = {f"max_batch_size={most}": most, f"the {samples} samples of an epoch": samples}
    for limit, largest in limits.items():
        if largest is not None and largest < start:
            raise ValueError(
                f"GradientAccumulation begins with steps of {start} samples, its n_acc rounded up to whole batches of "
                f"{bs}, which is more than {limit}: change either, or leave it to itself by "
                "AdaptiveBatchSize(overhead=0)"
            )

"""The parts that a loader's session puts together."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from ..model import BatchLoss
from ..run import LookAhead, TrainingRun
from ..sampling import EpochSource
from .batch_of_step import BatchOfStep
from .loop_facts import GradientsReady
from .misuse import MisuseWarnings
from .ranks import RankMeter
from .row_check import RowCheck
from .run_length import RunLength
from .scheduler import SchedulerDriver


@dataclass(frozen=True, kw_only=True)
class SessionParts:
    """The parts of a session, which `make_session` makes from a loader's arguments.

    Attributes:
        source: the batches of every epoch.
        run: the training run that they belong to.
        length: length of the run, as far as it is known.
        optimizer: the optimizer that trains.
        following: the hyperparameters of it that follow the batch.
        driver: tells where the scheduler is to go.
        scheduler: the loop's, which goes by the driver; None where there is none.
        misuse: warns of what should follow the batch and does not.
        batch_of_step: notices a loop of which it is not known which batch its steps belong to.
        rows: checks that rows follow samples.
        meter: measures the steps of several ranks; None on one process.
        loss: the loss of a batch; None where it was not given.
        look_ahead: makes one for each iteration; None: it is found out.
        ready: where an adapter says when gradients are ready; None: they are when the optimizer steps.
    """

    source: EpochSource
    run: TrainingRun
    length: RunLength
    optimizer: Optimizer
    following: Collection[str]
    driver: SchedulerDriver
    scheduler: Any
    misuse: MisuseWarnings
    batch_of_step: BatchOfStep
    rows: RowCheck
    meter: RankMeter | None
    loss: BatchLoss | None
    look_ahead: Callable[[], LookAhead] | None
    ready: GradientsReady | None

"""Checks the arguments of an AdaptiveDataLoader, and makes the parts of its session from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any

from ..gradients import waits_for_nobody
from ..hyperparameters import traits_of
from ..model import BatchLoss, CachedFact, a_few_others, a_few_trained, group_sizes
from ..ranks import Ranks
from ..run import TrainingRun, TrialStep
from ..sampling import EpochSource
from .arguments import Given, advise_whole_batches, check, check_measurable, check_ranks, parameters_of
from .batch_of_step import BatchOfStep
from .call_interval import StatedInterval
from .learnt_driver import LearntDriver
from .loop_facts import GradientsReady, LoopFacts
from .misuse import MisuseWarnings
from .ranks import RankMeter
from .row_check import RowCheck
from .run_length import RunLength
from .scheduler import SchedulerDriver
from .session import LoaderSession
from .session_parts import SessionParts
from .stated_driver import StatedDriver


def make_session(given: Given, facts: LoopFacts) -> LoaderSession:
    """The session of a loader. Nothing of the user's is changed.

    Args:
        given: the loader's arguments.
        facts: of the loop, where an adapter states them.

    Raises:
        ValueError, TypeError: for arguments that cannot be.
    """
    check(given)
    given = given.with_plain_numbers()
    ranks = replace(Ranks.from_arguments(given.rank, given.world_size), in_runs=facts.in_runs)
    check_ranks(given, ranks)
    source = _source(given, ranks)
    pass_samples = source.batch_sampler.pass_samples
    given.settings.check_start(given.batch_size, pass_samples // ranks.world_size)
    fixed = FixedRun(given.batch_size * ranks.world_size, pass_samples)
    length, driver = _length(given, facts, fixed), _driver(given, facts, fixed)
    loss = _loss(given, facts)
    if loss is None and not ranks.connected:
        check_measurable(given.model, parameters_of(given.optimizer), given.settings)
    run = _run(given, facts, fixed, ranks, loss, driver)
    # A lambda would cost a call at every batch.
    source.follow(partial(attrgetter("batch_size"), run.controller), run.controller.rules.has_few_sizes)
    if source.batch_sampler.shortest_tail != fixed.start:
        advise_whole_batches(given.model)
    ready = GradientsReady() if facts.says_when_ready else None
    parts = SessionParts(
        source=source,
        run=run,
        length=length,
        optimizer=given.optimizer,
        following=given.settings.following,
        driver=driver,
        scheduler=given.scheduler,
        misuse=_misuse(given, run, driver),
        batch_of_step=BatchOfStep(run, length, ranks.world_size, partial(a_few_trained, given.optimizer)),
        rows=RowCheck(given.stock.get("collate_fn"), given.dataset, run),
        meter=_rank_meter(given, facts, ranks, loss, ready),
        loss=loss,
        look_ahead=facts.look_ahead,
        ready=ready,
    )
    return LoaderSession(parts)


@dataclass(frozen=True)
class FixedRun:
    """The run that a stock loader would make.

    Attributes:
        start: samples of a batch, of all ranks.
        epoch_samples: samples of an epoch.
    """

    start: int
    epoch_samples: int

    @property
    def epoch_steps(self) -> int:
        """Batches of an epoch."""
        return -(-self.epoch_samples // self.start)


def _source(given: Given, ranks: Ranks) -> EpochSource:
    stock = given.stock
    return EpochSource(
        given.dataset, given.batch_size, given.shuffle, given.sampler, given.drop_last, given.generator,
        given.accumulation_steps, ranks,
        num_workers=stock.get("num_workers", 0), persistent_workers=stock.get("persistent_workers", False),
    )  # fmt: skip


def _length(given: Given, facts: LoopFacts, fixed: FixedRun) -> RunLength:
    return RunLength(
        facts.planned_epochs or given.epochs, given.scheduler, start=fixed.start, epoch_samples=fixed.epoch_samples,
        epoch_steps=fixed.epoch_steps, accumulation_steps=given.accumulation_steps,
        dataset_samples=_samples_of(given.dataset),
    )  # fmt: skip


def _samples_of(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:  # it has no length, and a sampler that has one
        return None


def _driver(given: Given, facts: LoopFacts, fixed: FixedRun) -> SchedulerDriver:
    has_schedule = given.scheduler is not None or facts.moves_schedules
    plan = fixed.start, fixed.epoch_samples, fixed.epoch_steps
    if facts.schedule_steps is None:
        learnt = LearntDriver(*plan, given=has_schedule)
        if facts.rest_makes_a_step:
            learnt.know(-(-fixed.epoch_steps // given.accumulation_steps), given.accumulation_steps)
        return learnt
    interval = StatedInterval(facts.schedule_steps, given.accumulation_steps, fixed.epoch_steps)
    return StatedDriver(*plan, interval, given=has_schedule)


def _loss(given: Given, facts: LoopFacts) -> BatchLoss | None:
    if not given.loss_func and not given.batch_loss:
        return None
    return BatchLoss(
        given.loss_func, given.batch_loss, given.autocast, called=facts.loss_name, split=given.settings.split
    )


def _run(
    given: Given, facts: LoopFacts, fixed: FixedRun, ranks: Ranks, loss: BatchLoss | None, driver: SchedulerDriver
) -> TrainingRun:
    model, optimizer = given.model, given.optimizer
    tried = waits_for_nobody(model) if ranks.connected else model
    run = TrainingRun(
        given.settings, model, optimizer,
        batch_size=given.batch_size, epoch_samples=fixed.epoch_samples, adaptive=traits_of(optimizer).adaptive,
        loss=loss, parameters=partial(parameters_of, optimizer),
        trial=TrialStep(tried, loss) if tried is not None and loss is not None else None,
        batches_per_step=given.accumulation_steps * ranks.world_size, ranks=ranks,
        micro_batch_size=facts.micro_batch_size,
        on_schedule_moved=driver.moved if given.scheduler is not None else None,
    )  # fmt: skip
    if not driver.given:
        run.controller.rules.expect_no_decay()
    return run


def _rank_meter(
    given: Given, facts: LoopFacts, ranks: Ranks, loss: BatchLoss | None, ready: GradientsReady | None
) -> RankMeter | None:
    if not given.settings.measures or not ranks.connected:
        return None
    passes = given.accumulation_steps * (1 if facts.micro_batch_size is None else 2)  # two stand for more
    return RankMeter(given.model, given.optimizer, loss, ranks, passes, ready)


def _misuse(given: Given, run: TrainingRun, driver: SchedulerDriver) -> MisuseWarnings:
    model, optimizer, may_change = given.model, given.optimizer, run.controller.rules.may_change
    return MisuseWarnings(
        optimizer,
        rate_follows=driver.given or not may_change,
        follows=may_change and bool(given.settings.following),
        batches_per_step=run.controller.batches_per_step,
        holds=run.controller.holds,
        others=CachedFact(model, partial(a_few_others, model, optimizer), partial(group_sizes, optimizer)),
        parameters=model.parameters if may_change else None,
    )

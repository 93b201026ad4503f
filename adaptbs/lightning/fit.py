"""One fit: the adaptive loader replaces the stock one, and Lightning's counts stay those of the stock run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from ..loader import AdaptedLoader, LoopFacts
from ..run import NoLookAhead
from ..sampling import FirstSampler, whole_order
from .checkpoints import CheckpointsByStep
from .loop import LightningLoop
from .plan import StockRun
from .randomness import RandomStates, random_state, ranks_draw_alike, set_random_state
from .schedules import schedules_of
from .view import LoaderView

FEW = 2  # with at most this many batches left, they are counted at each batch


class AdaptiveFit:
    """A fit whose batch grows.

    A batch stands for those of the stock run whose samples it has. Lightning counts them all, as the stock run would:
    `trainer.global_step` goes on by their optimizer steps, a validation, a checkpoint or a log that falls on one of
    them comes after it, and each schedule makes the steps that it would have made.

    Args:
        trainer: the Trainer, about to train.
        stock: its train loader.
        states: torch's random states when Lightning began to iterate the stock loader.
        arguments: arguments of AdaptiveDataLoader.
        accumulation: batches of an optimizer step in manual optimization. Otherwise the Trainer knows it.
    """

    def __init__(
        self, trainer: Any, stock: DataLoader[Any], states: RandomStates, arguments: dict[str, Any], accumulation: int
    ) -> None:
        self._trainer, self._loop = trainer, LightningLoop(trainer)
        self._states: RandomStates | None = states  # None after the first iteration, which draws from them
        self._automatic: bool = trainer.lightning_module.automatic_optimization
        start = int(stock.batch_size or 1) * trainer.world_size
        self._sampler, self._most = self._first_of(stock, start)
        samples = len(stock.dataset if self._sampler is None else self._sampler)  # type: ignore[arg-type]
        samples -= samples % start if stock.drop_last else 0
        self._plan = StockRun(start, samples, trainer.accumulate_grad_batches)
        facts = LoopFacts(
            look_ahead=NoLookAhead, says_when_ready=True, moves_schedules=True,
            planned_epochs=self._plan.epochs(trainer.max_epochs, trainer.max_steps),
        )  # fmt: skip
        made = {
            "model": trainer.strategy.model, "optimizer": trainer.optimizers[0],
            "accumulation_steps": trainer.accumulate_grad_batches if self._automatic else accumulation,
        }  # fmt: skip
        if self._sampler is not None:
            made["sampler"] = self._sampler
        self.loader = AdaptedLoader(facts, stock, **made, **arguments)
        if trainer.current_epoch:
            self.loader.training_run.controller.skip_epochs(trainer.current_epoch)
        self._draws_alike = ranks_draw_alike()  # if not, rank 0's checkpoint lacks the other ranks' states
        self._schedules = schedules_of(trainer, self._plan)
        self._checkpoints = CheckpointsByStep(self._loop)
        self._batches: Iterator[Any] = iter(())  # batches of the current epoch
        self._total = self._loop.batches_so_far  # batches of the stock run so far
        self._step_of_epoch = self._loop.global_step  # global step at which the current epoch began
        self._size = 0  # samples of a step, when `_left` was counted
        self._left = 0  # batches that come after the latest one
        self._owed = 0  # optimizer steps of the stock run that are not counted yet
        self._by_hand = 1 if self._automatic else accumulation
        self._grown = False  # True if a batch since the latest manual step stands for several

    def _first_of(self, stock: DataLoader[Any], start: int) -> tuple[FirstSampler | None, int | None]:
        """The sampler of the samples that Lightning asks for, and their largest number, None if it is not limited."""
        if isinstance(stock.dataset, IterableDataset):
            return None, None
        order = whole_order(stock.sampler)
        whole = len(order) // start if stock.drop_last else -(-len(order) // start)
        most = int(self._loop.stock_batches) * start if self._loop.stock_batches < whole else None
        # Workers fetch ahead. Without them only a short last batch shows that the sampler's epoch is over.
        asks_on = stock.num_workers > 0 or len(order) % start > 0
        return FirstSampler(order, most, asks_on=asks_on), most

    def enter(self, saved: dict[str, Any] | None) -> None:
        """Put the loader in the stock one's place, and continue from `state_dict()` if one was saved."""
        if saved is not None:
            self._load(saved)
        self._loop.iterate(LoaderView(self.loader, self._sampler, self.iterate))

    def iterate(self) -> Iterator[Any]:
        """The batches of an epoch, or of the rest of one. Sets Lightning's counts before it yields each."""
        states, self._states = self._states, None
        if not self.loader.training_run.tracker.under_way:
            self._step_of_epoch = self._loop.global_step
            self._end_by_max_steps()
        with nullcontext() if states is None else states.drawn_from():
            self._batches = iter(self.loader)
        self._left = 0
        for schedule in self._schedules:
            schedule.begin_epoch()
        try:
            for batch in self._batches:
                self._count()
                yield batch
        finally:
            for schedule in self._schedules:
                schedule.end_epoch()

    def _end_by_max_steps(self) -> None:
        """Let the epoch end at the step at which `max_steps` ends the run."""
        if self._sampler is None or not self._automatic:
            return
        left, most = self._trainer.max_steps - self._step_of_epoch, self._plan.epoch_samples
        samples = most if self._trainer.max_steps == -1 else self._plan.samples_of(max(left, 1))
        self._sampler.deliver(samples if samples < most else self._most)

    @property
    def _is_cut_off(self) -> bool:
        """True if the run ends within this epoch."""
        return self._sampler is not None and self._sampler.most != self._most

    def _count(self) -> None:
        """Count the batches of the stock run for which the batch just fetched stands."""
        plan, loop = self._plan, self._loop
        span = self.loader.training_run.tracker.schedule_span
        before, after = map(plan.batches, span)
        passed, left = after - before, self._count_down()
        self._grown = self._grown or passed != 1
        beyond = plan.epoch_batches - after if self._is_cut_off else 0
        makes_step = loop.expect(left, ends_epoch=not left and not self._is_cut_off, beyond=max(beyond, 0))
        for schedule in self._schedules:
            schedule.moved(*span)
        self._checkpoints.begin_batch()
        loop.log_as_given()
        if self._automatic:
            self._owed += plan.steps(before, after)
        else:  # the module begins to count anew in each epoch, by `batch_idx`
            self._owed += after // self._by_hand - before // self._by_hand
            loop.count_logged(passed - 1)
        if self._automatic and makes_step:
            loop.count_logged(self._owed - 1)
            loop.count_steps(self._owed - 1)
            self._owed = 0
        since = self._total if loop.validates_by_run else before
        self._total += passed
        loop.validate(since, since + passed, makes_step=makes_step)

    def _count_down(self) -> int:
        """Count the batches that come after the one just fetched, at the present size."""
        size = self.loader.training_run.controller.batch_size
        # Counting takes as long as some of Lightning's hooks. So it is done only if the size has changed, and near the
        # end, where the sampler may end earlier or later than its length says.
        counted = size != self._size or self._left <= FEW
        self._left = self.loader.batches_left if counted else self._left - 1
        self._size = size
        return self._left

    def end_batch(self) -> None:
        """Record that a batch has been trained on."""
        if not self._automatic:
            self._count_manual_steps()
        if not self._left and not self._is_cut_off:
            next(self._batches, None)  # Lightning would run the epoch's end only when the next epoch begins

    def _count_manual_steps(self) -> None:
        """Count a step of the module as often as the stock run would have made one."""
        made = self._loop.global_step - self._checkpoints.step_before
        if made:
            if self._grown:
                self._loop.count_steps(made * (self._owed - 1))
            self._owed, self._grown = 0, False

    def end_epoch(self) -> None:
        """End an epoch, even if it was interrupted."""
        if not self._is_cut_off and (close := getattr(self._batches, "close", None)) is not None:
            close()

    def before_validation(self) -> None:
        self.loader.pause()

    def after_validation(self) -> None:
        self.loader.go_on()

    def gradients_are_ready(self) -> None:
        self.loader.gradients_are_ready()

    def leave(self) -> None:
        """Restore the Trainer and the optimizer. The results of the run are kept."""
        self._loop.leave()
        self._checkpoints.leave()
        for schedule in self._schedules:
            schedule.leave()
        self.loader.close()

    def state_dict(self) -> dict[str, Any]:
        """The state on which the rest of the fit depends, besides what Lightning saves."""
        state = {
            "loader": self.loader.state_dict(),
            "schedules": [schedule.state_dict() for schedule in self._schedules],
            "most": None if self._sampler is None else self._sampler.most, "max_steps": self._trainer.max_steps,
            "step_of_epoch": self._step_of_epoch, "ahead": self._checkpoints.ahead,
            "total": self._total, "owed": self._owed, "grown": self._grown,
            "validates": self._loop.validates_now, "waits": self._loop.validation_waits,
        }  # fmt: skip
        return {**state, "random": random_state()} if self._draws_alike else state

    def _load(self, state: dict[str, Any]) -> None:
        loader, self._step_of_epoch = state["loader"], state["step_of_epoch"]
        if self._sampler is not None:
            self._sampler.deliver(state["most"])
            before = len(self._sampler)
            if state["max_steps"] != self._trainer.max_steps:
                self._end_by_max_steps()
            loader = self.loader.lengthened(loader, len(self._sampler) - before)
        self.loader.load_state_dict(loader)
        for schedule, saved in zip(self._schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved)
        self._total, self._owed, self._grown = state["total"], state["owed"], state["grown"]
        planned = self._plan.epochs(self._trainer.max_epochs, self._trainer.max_steps)
        self.loader.training_run.controller.plan(planned)
        self._loop.count_steps(state["ahead"])
        under_way = self.loader.training_run.tracker.under_way
        self._loop.resume(under_way=under_way, validates=state["validates"], waits=state["waits"])
        if "random" in state:
            self._states = None
            set_random_state(state["random"])

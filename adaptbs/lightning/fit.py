"""One fit: the adaptive loader replaces the stock one, and Lightning's counts stay those of the stock run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from ..loader import AdaptedLoader, LoopFacts
from ..run import NoLookAhead
from ..sampling import FirstSampler, whole_order
from .averages import AveragesByStep
from .checkpoints import CheckpointsByStep
from .loop import LightningLoop
from .manual_steps import ManualSteps
from .plan import StockRun
from .randomness import RandomStates, random_state, ranks_draw_alike, set_random_state
from .schedules import schedules_of
from .validations import ValidationDraws
from .view import LoaderView

WITHIN_A_STREAM = (
    "the checkpoint was saved within an epoch, without AdaptiveBatchSize, and the dataset is an IterableDataset, so "
    "what is left of the epoch is not known: go on from a checkpoint of an epoch's end, or leave AdaptiveBatchSize out "
    "of callbacks="
)
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
        self._loop.begin_epoch_of_checkpoint()
        # None after the first iteration, which draws from them.
        self._states: RandomStates | None = None if self._loop.iterates_again else states
        self._stock = stock
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
        # Samples of the epoch under way that a checkpoint without our state has trained on.
        self._behind = self._loop.batches_behind * start
        if trainer.current_epoch or self._behind:
            self.loader.training_run.controller.skip_epochs(trainer.current_epoch, self._behind)
        self._draws_alike = ranks_draw_alike()  # if not, rank 0's checkpoint lacks the other ranks' states
        self._schedules = schedules_of(trainer, self._plan)
        self._checkpoints = CheckpointsByStep(self._loop)
        self._averages = AveragesByStep(trainer.callbacks, lambda: self._checkpoints.step_before)
        self._validations = ValidationDraws(trainer)
        self._batches: Iterator[Any] = iter(())  # batches of the current epoch
        self._total = self._loop.batches_so_far  # batches of the stock run so far
        # global step at which the current epoch began
        self._step_of_epoch = self._loop.global_step - self._plan.steps(0, self._loop.batches_behind)
        self._size = 0  # samples of a step, when `_left` was counted
        self._left = 0  # batches that come after the latest one
        self._owed = 0  # optimizer steps of the stock run that are not counted yet
        self._by_hand = ManualSteps(self._plan, 1 if self._automatic else accumulation)
        self._grown = False  # True if a batch since the latest manual step stands for several

    def _first_of(self, stock: DataLoader[Any], start: int) -> tuple[FirstSampler | None, int | None]:
        """The sampler of the samples that Lightning asks for, and their largest number, None if it is not limited."""
        if isinstance(stock.dataset, IterableDataset):
            return None, None
        order = whole_order(stock.sampler)
        whole = len(order) // start if stock.drop_last else -(-len(order) // start)
        most = int(self._loop.stock_batches) * start if self._loop.stock_batches < whole else None
        # Workers fetch ahead. Without them only a short last batch shows that the sampler's epoch is over, and with
        # drop_last there is none.
        asks_on = stock.num_workers > 0 or (len(order) % start > 0 and not stock.drop_last)
        return FirstSampler(order, most, asks_on=asks_on), most

    def enter(self, saved: dict[str, Any] | None) -> None:
        """Put the loader in the stock one's place, and continue from `state_dict()` if one was saved."""
        if saved is not None:
            self._load(saved)
        elif self._behind and self._sampler is None:
            raise NotImplementedError(WITHIN_A_STREAM)
        # A look at the batches, as a module takes at `trainer.train_dataloader`, is no epoch of the fit.
        shown = LoaderView(self.loader, self._sampler, lambda: iter(self._stock))
        self._loop.iterate(LoaderView(self.loader, self._sampler, self.iterate), shown)

    def iterate(self) -> Iterator[Any]:
        """The batches of an epoch, or of the rest of one. Sets Lightning's counts before it yields each."""
        states, self._states = self._states, None
        if not self.loader.training_run.tracker.under_way:
            if not self._behind:
                self._step_of_epoch = self._loop.global_step
            self._deliver()
        with nullcontext() if states is None else states.drawn_from():
            self._batches = iter(self.loader)
        self._left = 0
        self._by_hand.begin_epoch()
        for schedule in self._schedules:
            schedule.begin_epoch()
        try:
            for batch in self._batches:
                self._count()
                yield batch
        finally:
            for schedule in self._schedules:
                schedule.end_epoch()

    def _deliver(self) -> None:
        """Let the epoch have the samples that the stock run still takes of it: up to the step that ends the run."""
        if self._sampler is None:
            return
        left, most = self._trainer.max_steps - self._step_of_epoch, self._plan.epoch_samples
        by_steps = self._automatic and self._trainer.max_steps != -1
        samples = self._plan.samples_of(max(left, 1)) if by_steps else most
        self._sampler.deliver(samples - self._behind if samples < most else self._rest)

    @property
    def _rest(self) -> int | None:
        """The most samples that the epoch still has; None: all.

        An epoch that goes on begins its order anew in the stock run, which trains on the first batches of it.
        """
        return self._plan.epoch_batches * self._plan.start - self._behind if self._behind else self._most

    @property
    def _is_cut_off(self) -> bool:
        """True if the run ends within this epoch."""
        return self._sampler is not None and self._sampler.most != self._rest

    @property
    def _beyond(self) -> int:
        """Batches of this epoch that the run ends before, at the present size."""
        if self._sampler is None or self._sampler.most is None or not self._is_cut_off:
            return 0
        batches = self._plan.epoch_batches - self._plan.batches(self._sampler.most + self._behind)
        return -(-batches * self.loader.training_run.controller.start_batch_size // self._size)

    def _count(self) -> None:
        """Count the batches of the stock run for which the batch just fetched stands."""
        plan, loop = self._plan, self._loop
        plan.check(self._trainer.accumulate_grad_batches)
        first, last = self.loader.training_run.tracker.schedule_span
        span = first + self._behind, last + self._behind
        before, after = map(plan.batches, span)
        passed, left = after - before, self._count_down()
        self._grown = self._grown or passed != 1
        makes_step = loop.expect(left, ends_epoch=not left and not self._is_cut_off, beyond=self._beyond)
        for schedule in self._schedules:
            schedule.moved(*span)
        self._checkpoints.begin_batch()
        self._validations.begin_batch()
        loop.log_as_given()
        if self._automatic:
            self._owed += plan.steps(before, after)
        else:  # the module begins to count anew in each epoch, by `batch_idx`
            self._owed += self._by_hand.owed(before, after)
            loop.count_logged(passed - 1)
        if self._automatic and makes_step:
            loop.count_logged(self._owed - 1)
            loop.count_steps(self._owed - 1)
            self._owed = 0
            self._checkpoints.expect_step()
        loop.validate(before, after, run_before=self._total, makes_step=makes_step)
        self._total += passed

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
        self._validations.end_batch()
        if not self._automatic:
            self._count_manual_steps()
        if not self._left and not self._is_cut_off:
            next(self._batches, None)  # Lightning would run the epoch's end only when the next epoch begins
            self._behind = 0

    def _count_manual_steps(self) -> None:
        """Count a step of the module as often as the stock run would have made one."""
        made = self._loop.global_step - self._checkpoints.step_before
        number, ends_epoch = self._loop.batch_number - 1, not self._left and not self._is_cut_off
        if self._by_hand.end_batch(number, made_step=made > 0, ends_epoch=ends_epoch):
            self._owed += self._by_hand.of_end
            self._know_steps()
        if made:
            if self._grown:
                self._loop.count_steps(made * (self._owed - 1))
            self._owed, self._grown = 0, False

    def _know_steps(self) -> None:
        for schedule in self._schedules:
            schedule.know_steps(self._by_hand.epoch_steps, self._by_hand.batches)

    def end_epoch(self) -> None:
        """End an epoch, even if it was interrupted."""
        self._validations.pass_by()
        self._checkpoints.end_epoch()
        if self._is_cut_off:
            return
        self._behind = 0
        if (close := getattr(self._batches, "close", None)) is not None:
            close()

    def before_validation(self) -> None:
        self._validations.begin()
        self.loader.pause()

    def after_validation(self) -> None:
        self._validations.pass_by()
        self.loader.go_on()

    def gradients_are_ready(self) -> None:
        self.loader.gradients_are_ready()

    def leave(self) -> None:
        """Restore the Trainer and the optimizer. The results of the run are kept."""
        self._validations.leave()
        self._loop.leave()
        self._checkpoints.leave()
        self._averages.leave()
        for schedule in self._schedules:
            schedule.leave()
        self.loader.close()

    def state_dict(self) -> dict[str, Any]:
        """The state on which the rest of the fit depends, besides what Lightning saves."""
        state = {
            "loader": self.loader.state_dict(),
            "schedules": [schedule.state_dict() for schedule in self._schedules],
            "most": None if self._sampler is None else self._sampler.most, "max_steps": self._trainer.max_steps,
            "step_of_epoch": self._step_of_epoch, "behind": self._behind, "ahead": self._checkpoints.ahead,
            "ends_with_step": self._by_hand.ends_with_step,
            "total": self._total, "owed": self._owed, "grown": self._grown or self._by_hand.within_batch,
            "validates": self._loop.validates_now, "waits": self._loop.validation_waits,
            "validation_comes": self._validations.comes,
        }  # fmt: skip
        return {**state, "random": self._validations.random or random_state()} if self._draws_alike else state

    def _load(self, state: dict[str, Any]) -> None:
        loader, self._step_of_epoch, self._behind = state["loader"], state["step_of_epoch"], state.get("behind", 0)
        if self._sampler is not None:
            self._sampler.deliver(state["most"])
            before = len(self._sampler)
            if state["max_steps"] != self._trainer.max_steps:
                self._deliver()
            loader = self.loader.lengthened(loader, len(self._sampler) - before)
        self.loader.load_state_dict(loader)
        if len(state["schedules"]) == len(self._schedules):  # if not, others were made for this fit, which begin anew
            for schedule, saved in zip(self._schedules, state["schedules"], strict=True):
                schedule.load_state_dict(saved)
        self._total, self._owed, self._grown = state["total"], state["owed"], state["grown"]
        if (known := state.get("ends_with_step")) is not None:
            self._by_hand.know(ends_with_step=known)
            self._know_steps()
        planned = self._plan.epochs(self._trainer.max_epochs, self._trainer.max_steps)
        self.loader.training_run.controller.plan(planned)
        self._loop.count_steps(state["ahead"])
        self._checkpoints.end_epoch()
        under_way = self.loader.training_run.tracker.under_way
        self._loop.resume(under_way=under_way, validates=state["validates"], waits=state["waits"])
        if "random" in state:
            self._states = None
            set_random_state(state["random"])
            if state.get("validation_comes"):
                self._validations.draw()

"""AdaptiveTrainer, and the mixin that makes one of any subclass of transformers.Trainer.

Tried with transformers 5.24.0 and accelerate 1.15.0. Beside what they document, this relies on the order in which
Trainer's loop calls `get_batch_samples` and `training_step`; on Trainer's `callback_handler` (`callbacks`,
`train_dataloader`), `current_gradient_accumulation_steps`, `loss_is_scaled_for_ga`, `_track_num_input_tokens`,
`_prepare_inputs`, `_get_output_dir` and `_trial`; on `trainer_callback.DefaultFlowCallback`; and on accelerate's
`base_dataloader` of a prepared loader, `batch_sampler` of its BatchSamplerShard and `optimizer` of an
AcceleratedOptimizer.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer
from transformers.trainer_callback import DefaultFlowCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from ..loader import AdaptedLoader, LoopFacts
from ..model import certain_split, preserved
from ..run import NoLookAhead, Settings, shows_shared_arguments
from .flow import AdaptiveFlowCallback
from .loader import TrainLoader
from .micro_batches import (
    CollateInMicroBatches,
    Micro,
    MicroBatches,
    SplitMicroBatches,
    StepPart,
    micro_batches,
    parts_of_step,
)
from .plan import Plan

Base: Any = Trainer if TYPE_CHECKING else object  # the mixin comes before a Trainer in a class's bases

STATE = "adaptbs.pt"  # in a checkpoint's folder
SAME = 1e-3  # relative difference of two losses that are taken to be equal


@shows_shared_arguments
class AdaptiveTrainerMixin(Base):
    """Makes any Trainer adaptive, as its first base: `class Mine(AdaptiveTrainerMixin, Seq2SeqTrainer)`.

    Trainer's own arguments keep their meaning. The run starts with `per_device_train_batch_size` and
    `gradient_accumulation_steps`. `max_steps`, `save_steps`, `eval_steps`, `logging_steps` and `state.global_step`
    count steps of the starting batch: a step at k times that batch counts k (docs/transformers.md).

    Args:
        args, kwargs: arguments of Trainer.
        by_accumulation: True: a larger batch goes through the model in micro-batches of `per_device_train_batch_size`,
            so gradient accumulation grows. On one device that saves no time, so give `target="noise_scale"` with it.
            False: the batch itself grows.
        {shared arguments}

    Raises:
        ValueError, TypeError: if an argument is not valid, when made or when training begins.
    """

    loss_is_scaled_for_ga: bool | None
    current_gradient_accumulation_steps: float
    _train_loader: TrainLoader | None = None
    _loss_weight = 1
    _logs = True  # False in a pass that is no step, in which compute_loss() may log what is no step's
    _counts_items: bool | None = None  # True once the loss is known to be divided by num_items_in_batch

    def __init__(self, *args: Any, by_accumulation: bool = False, **stock: Any) -> None:
        if stock.get("budget") == "progress":
            raise ValueError(
                "budget='progress': Trainer's runs end after max_steps or num_train_epochs, counted in the starting "
                "batch's samples. Leave budget= out"
            )
        given = dict(stock)
        Settings.taken_from(given)  # checks them
        self._settings = {name: value for name, value in stock.items() if name not in given}
        self._by_accumulation, self._resume_from = by_accumulation, None
        super().__init__(*args, **given)
        self._check_adaptive()
        self.pop_callback(DefaultFlowCallback)
        self.callback_handler.callbacks.insert(0, AdaptiveFlowCallback(self))

    def _check_adaptive(self) -> None:
        for name, on in (("DeepSpeed", self.is_deepspeed_enabled), ("FSDP", self.is_fsdp_enabled)):
            if on:
                raise ValueError(
                    f"{name} splits or keeps gradients where their noise cannot be measured yet: leave it out, which "
                    "under torchrun is DistributedDataParallel, or train with transformers.Trainer"
                )
        config = self.args.accelerator_config
        if self.args.world_size > 1 and (config.split_batches or not config.use_seedable_sampler):
            raise ValueError(
                "accelerator_config: several processes need split_batches=False and use_seedable_sampler=True, which "
                "are the defaults, so that all of them know the order of all samples"
            )

    @property
    def adaptive(self) -> AdaptedLoader | None:
        """The loader of the latest run, with its `.noise_scale`, `.history` and `.plot()`; None before the first."""
        loader = self._train_loader
        return loader.adaptive if loader is not None and loader.has_begun else None

    # --- a run ---

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The same as `Trainer.train`."""
        self._resume_from = resume_from_checkpoint
        if resume_from_checkpoint is True:
            self._resume_from = get_last_checkpoint(self.args.output_dir)
        # The loader resumes within an epoch by itself, so Trainer must not skip batches.
        skip, self.args.ignore_data_skip = self.args.ignore_data_skip, bool(self._resume_from)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.args.ignore_data_skip = skip
            self._close_adaptive()

    def _close_adaptive(self) -> None:
        if self.adaptive is not None:
            self.adaptive.close()

    def get_train_dataloader(self) -> Any:
        """The stock loader, wrapped so that its batches can grow once training begins."""
        return TrainLoader(super().get_train_dataloader())

    def begin_adaptive_run(self) -> None:
        """Make the loader that delivers this run's batches, and resume from a checkpoint if one was given."""
        loader, args = self.callback_handler.train_dataloader, self.args
        if not isinstance(loader, TrainLoader):
            raise TypeError(
                "get_train_dataloader() does not return the AdaptiveTrainer's loader. Put a method of your own behind "
                "the mixin: class Mine(AdaptiveTrainerMixin, Base), where Base is the Trainer with that method"
            )
        self._close_adaptive()  # Trainer may have begun the run anew with a smaller batch
        plan = Plan.of(
            loader.plain, batches=len(loader), accumulation_steps=args.gradient_accumulation_steps,
            world_size=args.world_size, max_steps=self.state.max_steps,
        )  # fmt: skip
        adaptive = self._make_adaptive(loader, plan)
        self._train_loader = loader
        loader.begin(adaptive, plan)
        self._step_before = self.state.global_step
        if self._resume_from:
            adaptive.load_state_dict(_saved_state(self._resume_from))

    def _make_adaptive(self, loader: TrainLoader, plan: Plan) -> AdaptedLoader:
        """The loader that delivers a run's batches."""
        args, arguments = self.args, dict[str, Any]()
        # Several processes draw the same order by the sampler's own seed, so they need not agree on one.
        if args.world_size > 1 or not plan.ends_with_an_epoch:
            arguments["sampler"] = loader.sampler
        if self._by_accumulation:
            arguments["collate_fn"] = CollateInMicroBatches(loader.plain.collate_fn, loader.batch_size)
            arguments["split"] = SplitMicroBatches(self._settings.get("split") or certain_split)
        scheduler = self.lr_scheduler if isinstance(self.lr_scheduler, LRScheduler) else None
        facts = LoopFacts(
            look_ahead=NoLookAhead,  # a step's batches are fetched before its first pass, and no others
            schedule_steps=1, planned_epochs=plan.epochs, in_runs=True,
            micro_batch_size=loader.batch_size if self._by_accumulation else None,
        )  # fmt: skip
        adaptive = AdaptedLoader(
            facts, loader.plain, model=self.model_wrapped, scheduler=scheduler,
            optimizer=getattr(self.optimizer, "optimizer", self.optimizer),
            # compute_loss() may wait for the other processes, which would not all make the same extra passes.
            batch_loss=self._loss_of if args.world_size == 1 else None,
            accumulation_steps=args.gradient_accumulation_steps, **{**self._settings, **arguments},
        )  # fmt: skip
        if self._by_accumulation:
            adaptive.training_run.controller.memory.expect_pieces()
        return adaptive

    def save_adaptive_state(self) -> None:
        """Put the state of the run into the folder of the checkpoint that Trainer has just written."""
        folder = Path(self._get_output_dir(trial=self._trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.adaptive is not None and self.args.should_save and not self.args.save_only_model:
            torch.save(self.adaptive.state_dict(), folder / STATE)

    # --- a step ---

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The batches of a step, in as many parts as Trainer's loop counts, and the number of their items."""
        loader = self._train_loader
        if loader is None or not loader.delivers(epoch_iterator):
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        batches: list[Any] = []
        for batch in epoch_iterator:
            batches.append(batch)
            if loader.ends_step:
                break
        self._loss_weight = loader.plan.steps(loader.samples) - self._step_before
        as_ever = len(batches) in (0, num_batches) and not any(isinstance(batch, MicroBatches) for batch in batches)
        micros = [] if as_ever else micro_batches(batches)
        inputs = batches if as_ever else [micro.inputs for micro in micros]
        _, num_items = super().get_batch_samples(iter(inputs), len(inputs), device)
        return (batches if as_ever else parts_of_step(micros, num_batches)), num_items

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Tensor:
        """Forward and backward pass. Returns the loss times the steps of the fixed run for which the step stands.

        Trainer adds up the losses of steps between two logs.
        """
        if not isinstance(inputs, StepPart):
            loss = super().training_step(model, inputs, num_items_in_batch, **kwargs)
            return loss if self._loss_weight == 1 else loss * self._loss_weight
        total = torch.zeros((), device=self.args.device)
        for i, micro in enumerate(inputs, 1):
            # The loop's own no_sync() is around all but the last part.
            with nullcontext() if i == len(inputs) else self.accelerator.no_sync(model=model):
                total = total + self._micro_step(model, micro, num_items_in_batch, **kwargs)
        return total * self._loss_weight

    def _micro_step(self, model: nn.Module, micro: Micro, num_items: Any, **kwargs: Any) -> Tensor:
        """Forward and backward pass of one micro-batch of a step that has several."""
        if self._counts_items is None and num_items is not None:
            self._counts_items = self._divides_by_items(micro.inputs, num_items)
        said = self.loss_is_scaled_for_ga
        self.current_gradient_accumulation_steps = 1 / micro.step_share
        try:
            # Trainer takes such a loss as divided by the step's items. It is not, so the means of batches would add up.
            if num_items is not None and not self._counts_items and said is None:
                self.loss_is_scaled_for_ga, self.current_gradient_accumulation_steps = False, 1 / micro.batch_share
            return super().training_step(model, micro.inputs, num_items, **kwargs)
        finally:
            self.loss_is_scaled_for_ga = said

    def _divides_by_items(self, inputs: Any, num_items: Any) -> bool | None:
        """True if the loss is a sum divided by `num_items_in_batch`; None if its value does not tell."""
        losses = []
        for factor in (1, 2):  # each from the same random state, as dropout would else make two losses of one batch
            with torch.no_grad(), preserved(self.model), self.compute_loss_context_manager():
                prepared = self._prepare_inputs(dict(inputs))
                losses.append(self.compute_loss(self.model, prepared, num_items_in_batch=num_items * factor).item())
        once, twice = losses
        if not math.isfinite(once) or once == 0:
            return None
        return math.isclose(2 * twice, once, rel_tol=SAME)

    def _loss_of(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch, for passes that are no step, such as halves of a batch or trials of a larger one."""
        losses, self._logs = [], False
        try:
            for micro in micro_batches([batch]):
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, self._prepare_inputs(dict(micro.inputs)))
                    losses.append(loss * micro.batch_share)
        finally:
            self._logs = True
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def end_adaptive_step(self) -> tuple[int, float]:
        """Record an optimizer step. Return the fixed run's step and epoch."""
        loader = self._train_loader
        if loader is None:
            raise RuntimeError("no run has begun")
        loader.end_step()
        self._step_before = loader.plan.steps(loader.samples)
        return self._step_before, loader.plan.epoch(loader.samples)

    def floating_point_ops(self, inputs: Any) -> int:
        """The same as `Trainer.floating_point_ops`, added up over micro-batches."""
        if isinstance(inputs, StepPart):
            return sum(self.floating_point_ops(micro.inputs) for micro in inputs)
        return super().floating_point_ops(inputs)

    def _track_num_input_tokens(self, inputs: Any) -> None:
        for each in [micro.inputs for micro in inputs] if isinstance(inputs, StepPart) else [inputs]:
            super()._track_num_input_tokens(each)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log. A log with a loss also gets the batch size and the noise scale."""
        if not self._logs:
            return
        if self.adaptive is not None and "loss" in logs:
            logs |= {"batch_size": self.adaptive.batch_size, "global_batch_size": self.adaptive.global_batch_size}
            noise_scale = self.adaptive.noise_scale
            if noise_scale is not None and noise_scale.simple is not None:  # a number only once it is resolved
                logs["noise_scale"] = noise_scale.simple
        super().log(logs, *args, **kwargs)


def _saved_state(checkpoint: Any) -> Any:
    """The state of the run in a checkpoint's folder. Raises ValueError if there is none."""
    path = Path(checkpoint) / STATE
    if not path.is_file():
        raise ValueError(
            f"resume_from_checkpoint={checkpoint!r} has no {STATE}: a stock Trainer saves none, nor does "
            "save_only_model=True. Go on with transformers.Trainer, or start anew from its weights"
        )
    return torch.load(path, weights_only=True)


class AdaptiveTrainer(AdaptiveTrainerMixin, Trainer):
    """transformers.Trainer with a batch that grows. AdaptiveTrainerMixin documents its additional arguments."""

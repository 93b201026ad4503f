"""AdaptiveTrainer, and the mixin that makes one of any subclass of transformers.Trainer.

Tried with transformers 5.24.0 and accelerate 1.15.0. Beside what they document, this relies on the order in which
Trainer's loop calls `get_batch_samples` and `training_step`; on Trainer's `callback_handler` (`callbacks`,
`train_dataloader`), `current_gradient_accumulation_steps`, `loss_is_scaled_for_ga`, `_track_num_input_tokens`,
`_run_epoch`, `_save_rng_state`, `_prepare_inputs`, `_get_num_items_in_batch`, `_tr_loss` and
`_globalstep_last_logged`; on `trainer_callback.DefaultFlowCallback`; and on accelerate's `base_dataloader` of a
prepared loader, `batch_sampler` of its BatchSamplerShard and `optimizer` of an AcceleratedOptimizer.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer
from transformers.trainer_callback import DefaultFlowCallback
from transformers.trainer_utils import get_last_checkpoint

from ..loader import AdaptedLoader, LoopFacts
from ..model import OF_A_TRAINER
from ..run import NoLookAhead, Settings, shows_shared_arguments
from .flow import AdaptiveFlowCallback
from .loader import TrainLoader
from .micro_batches import (
    CollateInMicroBatches,
    MicroBatches,
    SplitMicroBatches,
    micro_batches,
    parts_of_step,
    split_rows,
)
from .plan import Plan
from .steps import StepsInParts

STATE = "adaptbs.pt"  # in a checkpoint's folder


@partial(shows_shared_arguments, budget="epochs")
class AdaptiveTrainerMixin(StepsInParts):
    """Makes any Trainer adaptive, as its first base: `class Mine(AdaptiveTrainerMixin, Seq2SeqTrainer)`.

    Trainer's own arguments keep their meaning. The run starts with `per_device_train_batch_size` and
    `gradient_accumulation_steps`. `max_steps`, `save_steps`, `eval_steps`, `logging_steps` and `state.global_step`
    count steps of the starting batch: a step at k times that batch counts k (docs/transformers.md).

    Args:
        args, kwargs: arguments of Trainer.
        by_accumulation: True: a larger batch goes through the model in micro-batches of `per_device_train_batch_size`,
            so gradient accumulation grows. On one device that saves no time, so give `target="noise_scale"` with it.
            False: the batch itself grows.
        shared arguments: documented by `Settings`.

    Raises:
        ValueError, TypeError: if an argument is not valid, when made or when training begins.
    """

    _train_loader: TrainLoader | None = None
    _epoch_is_over = False  # True once a step was asked for of which no batch is left

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
            with self.in_parts():
                return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.args.ignore_data_skip = skip
            self._close_adaptive()

    def _close_adaptive(self) -> None:
        if self._train_loader is not None:
            self._train_loader.close()

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
        loader.begin(adaptive, plan, _saved_state(self._resume_from) if self._resume_from else None)
        self._step_before = self.state.global_step

    def _make_adaptive(self, loader: TrainLoader, plan: Plan) -> AdaptedLoader:
        """The loader that delivers a run's batches."""
        args, arguments = self.args, dict[str, Any]()
        # Several processes draw the same order by the sampler's own seed, so they need not agree on one.
        if args.world_size > 1 or not plan.ends_with_an_epoch:
            arguments["sampler"] = loader.up_to_the_end
        if self._by_accumulation:
            arguments["collate_fn"] = CollateInMicroBatches(loader.plain.collate_fn, loader.batch_size)
            arguments["split"] = SplitMicroBatches(self._settings.get("split") or split_rows)
        scheduler = self.lr_scheduler if isinstance(self.lr_scheduler, LRScheduler) else None
        facts = LoopFacts(
            look_ahead=NoLookAhead,  # a step's batches are fetched before its first pass, and no others
            schedule_steps=1, planned_epochs=plan.epochs, in_runs=True, loss_name=OF_A_TRAINER,
            micro_batch_size=loader.batch_size if self._by_accumulation else None,
        )  # fmt: skip
        adaptive = AdaptedLoader(
            facts, loader.plain, model=self.model_wrapped, scheduler=scheduler,
            optimizer=getattr(self.optimizer, "optimizer", self.optimizer),
            # compute_loss() may wait for the other processes, which would not all make the same extra passes.
            batch_loss=self.calling(self._loss_of) if args.world_size == 1 else None,
            accumulation_steps=args.gradient_accumulation_steps, **{**self._settings, **arguments},
        )  # fmt: skip
        if self._by_accumulation:
            adaptive.training_run.controller.memory.expect_pieces()
        return adaptive

    def _save_rng_state(self, output_dir: str) -> None:
        """The same as Trainer's, and put the state of the run into the checkpoint.

        It is there before Trainer pushes the checkpoint to the hub, or deletes it for `save_total_limit`.
        """
        super()._save_rng_state(output_dir)
        if self._train_loader is not None and self._train_loader.has_begun and self.args.should_save:
            torch.save(self._train_loader.state_dict(), Path(output_dir) / STATE)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """An epoch of Trainer's, with room for the steps of batches that have become smaller than the first.

        Of an epoch that goes on from a checkpoint with growth off it has the steps that are left.
        """
        loader, parts = self._train_loader, self.args.gradient_accumulation_steps
        if loader is not None and loader.has_begun:
            if loader.adaptive.training_run.controller.rules.may_change:
                most = loader.plan.epoch_samples + 1  # `get_batch_samples` ends it
                kwargs |= {"num_update_steps_per_epoch": most, "steps_in_epoch": most * parts}
            elif self._resume_from and kwargs["epoch"] == kwargs["epochs_trained"]:
                left = loader.plan.batches_left(loader.samples)
                kwargs |= {"num_update_steps_per_epoch": -(-left // parts), "steps_in_epoch": left}
        super()._run_epoch(*args, **kwargs)

    # --- a step ---

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The batches of a step, in as many parts as Trainer's loop counts, and the number of their items."""
        loader = self._train_loader
        if loader is None or not loader.makes_steps_of(epoch_iterator):
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        loader.plan.check(self.args.gradient_accumulation_steps)
        batches: list[Any] = []
        for batch in epoch_iterator:
            batches.append(batch)
            if loader.ends_step:
                break
        self._epoch_is_over = not batches
        self.control.should_epoch_stop |= self._epoch_is_over
        self._loss_weight = loader.step - self._step_before
        as_ever = len(batches) in (0, num_batches) and not any(isinstance(batch, MicroBatches) for batch in batches)
        micros = [] if as_ever else micro_batches(batches)
        inputs = batches if as_ever else [micro.inputs for micro in micros]
        _, num_items = super().get_batch_samples(iter(inputs), len(inputs), device)
        return (batches if as_ever else parts_of_step(micros, num_batches)), num_items

    def _loss_of(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch, for passes that are no step, such as halves of a batch or trials of a larger one."""
        losses = []
        for micro in micro_batches([batch]):
            inputs = self._prepare_inputs(copy.copy(micro.inputs))
            items = self._get_num_items_in_batch([inputs], self.args.device)  # as in evaluation
            with self.beside_steps():
                loss = self.compute_loss(model, inputs, num_items_in_batch=items)
                losses.append(loss * micro.batch_share)
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def end_adaptive_step(self) -> tuple[int, float]:
        """Record an optimizer step. Return the fixed run's step and epoch."""
        loader = self._train_loader
        if loader is None:
            raise RuntimeError("no run has begun")
        loader.end_step()
        self._step_before = loader.step
        return self._step_before, loader.epoch

    def end_adaptive_epoch(self) -> None:
        """Let no callback or checkpoint say that an epoch was broken off which has come to its end."""
        self.control.should_epoch_stop &= not self._epoch_is_over

    def end_adaptive_run(self) -> None:
        """Be done with the last batch of a run that ends within an epoch."""
        if self._train_loader is not None:
            self._train_loader.end_iteration()

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

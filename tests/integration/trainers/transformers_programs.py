"""Small language models in Trainer, and what a run of theirs saw: on one process, and on each of several."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import distributed as dist
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from adaptbs.transformers import AdaptiveTrainer

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

VOCABULARY, LENGTH = 40, 16  # twice the batch: where the examples are must not be guessed from lengths alone
BATCH, EPOCHS = 8, 3
WHOLE, UNEVEN = 192, 203  # samples: of whole global batches, and not


def llama(**changed: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {
            "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32,
            "attention_dropout": 0.1, "bos_token_id": 1, "eos_token_id": 2,
        }  # fmt: skip
        return LlamaForCausalLM(LlamaConfig(**{**sizes, **changed}))


class Texts(Dataset):
    """Random tokens; `padded` leaves out the labels of a random number of the last ones of each."""

    def __init__(self, samples: int, padded: bool = False):
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(5, VOCABULARY, (samples, LENGTH), generator=generator)
        self.labels = self.tokens.clone()
        if padded:
            lengths = torch.randint(2, LENGTH + 1, (samples, 1), generator=generator)
            self.labels[torch.arange(LENGTH) >= lengths] = -100

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[i], "labels": self.labels[i], "index": torch.tensor(i)}


def ramp(start: int) -> Callable[..., int]:
    """A target of 1, 2, 4 and 8 times the first step, by the share of the run done."""
    return lambda noise_scale, size, progress: start * 2 ** min(int(4 * progress), 3)


class Watch(TrainerCallback):
    """Steps, epochs and rates after each optimizer step, and the steps of validations and checkpoints."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.epochs: list[float] = []
        self.evaluations: list[int] = []
        self.saves: list[int] = []
        self.begun: list[int] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun.append(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)
        self.epochs.append(state.epoch)

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluations.append(state.global_step)

    def on_save(self, args, state, control, **kwargs):
        self.saves.append(state.global_step)


class Seen:
    """Behind AdaptiveTrainer in a class's bases: notes each micro-batch that is trained on, and its loss."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[list[int]] = []

    def training_step(self, model, inputs, *args, **kwargs):
        self.seen.append(inputs.pop("index").tolist())
        return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(self, model, inputs, *args, **kwargs):
        inputs.pop("index", None)
        return super().compute_loss(model, inputs, *args, **kwargs)


class WatchedTrainer(Seen, Trainer):
    """transformers.Trainer."""


class Watched(AdaptiveTrainer, WatchedTrainer):
    """Ours around it."""


def arguments(out: str, **given: Any) -> TrainingArguments:
    usual = {
        "per_device_train_batch_size": BATCH, "num_train_epochs": EPOCHS, "learning_rate": 1e-2, "use_cpu": True,
        "report_to": "none", "save_strategy": "no", "logging_steps": 5, "disable_tqdm": True, "log_level": "error",
        "remove_unused_columns": False, "label_names": ["labels"],
    }  # fmt: skip
    return TrainingArguments(out, **{**usual, **given})


def forget_accelerate() -> None:
    """Let the next Accelerator of this process be the first."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state() if hasattr(state, "_reset_state") else state._shared_state.clear()


class Run:
    """A run of Trainer's, or where `adaptive` says more than nothing of ours.

    Args:
        out: folder of the checkpoints.
        adaptive: arguments of AdaptiveTrainer; None: a stock Trainer.
        model: makes the model.
        data: trained on.
        trainer: arguments of Trainer.
        given: TrainingArguments.
    """

    def __init__(
        self,
        out: str,
        adaptive: dict[str, Any] | None = None,
        *,
        model: Callable[[], nn.Module] = llama,
        data: Dataset | None = None,
        trainer: dict[str, Any] | None = None,
        **given: Any,
    ) -> None:
        self.watch = Watch()
        others = {"eval_dataset": Texts(16), **(trainer or {})}
        callbacks = [self.watch, *others.pop("callbacks", ())]
        self.trainer = (WatchedTrainer if adaptive is None else Watched)(
            model=model(), args=arguments(out, **given), train_dataset=data or Texts(UNEVEN), callbacks=callbacks,
            **others, **(adaptive or {}),
        )  # fmt: skip
        self.trainer.remove_callback(PrinterCallback)

    def train(self, **given: Any) -> Run:
        self.output = self.trainer.train(**given)
        return self

    @property
    def weights(self) -> torch.Tensor:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    def logged(self, name: str) -> list[float]:
        return [entry[name] for entry in self.trainer.state.log_history if name in entry]

    @property
    def samples(self) -> list[int]:
        return [i for batch in self.trainer.seen for i in batch]

    def result(self) -> dict[str, Any]:
        adaptive = getattr(self.trainer, "adaptive", None)
        return {
            "weights": self.weights, "steps": self.watch.steps, "epochs": self.watch.epochs, "seen": self.trainer.seen,
            "loss": self.logged("loss"), "training_loss": self.output.training_loss,
            "place": self.trainer.lr_scheduler.last_epoch, "max_steps": self.trainer.state.max_steps,
            "history": list(adaptive.history) if adaptive is not None else [],
        }  # fmt: skip


def growing(start: int = BATCH, **others: Any) -> dict[str, Any]:
    """Arguments of a run that grows to 8 times its first step, of `start` samples, and repeats to the bit."""
    return {
        "target": ramp(start), "max_batch_size": 8 * BATCH, "step_time": (1e-3, 1e-5), "overhead": 0.5,
        "decide_every": 0.02, **others,
    }  # fmt: skip


def resumed(out: str, **adaptive: Any) -> dict[str, Any]:
    """A run that saves now and then, and one that goes on from its second checkpoint."""
    saves = {"save_strategy": "steps", "save_steps": 7}
    whole = Run(f"{out}/whole", adaptive, **saves).train()
    rest = Run(f"{out}/rest", adaptive, **saves)
    rest.train(resume_from_checkpoint=f"{out}/whole/checkpoint-{whole.watch.saves[1]}")
    return {"whole": whole.result(), "rest": rest.result(), "at": whole.watch.saves[1]}


OFF = {"overhead": 0}
ACCUMULATED = {"gradient_accumulation_steps": 2}
PROGRAMS: dict[str, Callable[[int, str], Any]] = {
    "stock": lambda ranks, out: Run(out, data=Texts(WHOLE)).train().result(),
    "off": lambda ranks, out: Run(out, OFF, data=Texts(WHOLE)).train().result(),
    "stock accumulated": lambda ranks, out: Run(out, data=Texts(WHOLE), **ACCUMULATED).train().result(),
    "off accumulated": lambda ranks, out: Run(out, OFF, data=Texts(WHOLE), **ACCUMULATED).train().result(),
    "grown": lambda ranks, out: Run(out, growing(BATCH * ranks)).train().result(),
    "grown by accumulation": lambda ranks, out: (
        Run(out, growing(2 * BATCH * ranks, by_accumulation=True), max_steps=20, **ACCUMULATED).train().result()
    ),
    "resumed": lambda ranks, out: resumed(out, **growing(BATCH * ranks)),
}


def main(programs: str, rank: int, world: int, out: str) -> None:
    """Run programs as one of several processes."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world),
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    dist.init_process_group(
        "gloo", init_method=f"file://{out}/store", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    for name in programs.split(","):
        torch.save(PROGRAMS[name](world, f"{out}/{name}"), Path(out) / f"{name} {rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # (gloo's threads now and then abort a process that has done all it had to)

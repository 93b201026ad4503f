"""AdaptiveTrainer on one process, beside transformers.Trainer with the same arguments."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers: `make trainers` runs it in .venv-trainers")

from torch import nn
from transformers import EarlyStoppingCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback

from adaptbs.transformers import AdaptiveTrainer, AdaptiveTrainerMixin
from tests.integration.trainers.transformers_programs import (
    BATCH,
    OFF,
    UNEVEN,
    Run,
    Texts,
    Watched,
    arguments,
    forget_accelerate,
    growing,
    llama,
)


@pytest.fixture(autouse=True)
def fresh():
    forget_accelerate()


ARGUMENTS = {
    "epochs": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "steps": {"max_steps": 40},
    "fractions": {"num_train_epochs": 1.5, "gradient_accumulation_steps": 3},
    "whole batches, workers": {"dataloader_drop_last": True, "dataloader_num_workers": 2, "num_train_epochs": 1},
    "by length": {"train_sampling_strategy": "group_by_length"},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "bf16": {"bf16": True, "num_train_epochs": 1},
    "checkpointing": {"activation_checkpointing": True, "num_train_epochs": 1},
    "warm-up": {"lr_scheduler_type": "cosine", "warmup_steps": 0.2, "num_train_epochs": 1},
}
every_argument = pytest.mark.parametrize("given", ARGUMENTS.values(), ids=ARGUMENTS)


@every_argument
@pytest.mark.parametrize("off", [OFF, {"max_batch_size": BATCH, "overhead": 0.5}], ids=["unmeasured", "measured"])
def test_with_growth_off_the_weights_are_bit_for_bit_stocks(given, off, tmp_path):
    stock = Run(str(tmp_path / "stock"), **given).train()
    ours = Run(str(tmp_path / "ours"), off, **given).train()
    assert torch.equal(ours.weights, stock.weights)
    assert ours.trainer.seen == stock.trainer.seen
    assert ours.watch.steps == stock.watch.steps
    assert ours.watch.epochs == pytest.approx(stock.watch.epochs, abs=1e-12)
    assert ours.logged("loss") == stock.logged("loss")
    assert ours.logged("learning_rate") == stock.logged("learning_rate")
    assert ours.output.training_loss == stock.output.training_loss
    if off != OFF:
        events = Counter(record["event"] for record in ours.trainer.adaptive.history)
        assert events["measurement"] > 3
        assert ours.trainer.adaptive.training_run.measuring.meter.in_step


@every_argument
@pytest.mark.parametrize("by_accumulation", [False, True], ids=["batch", "micro-batches"])
def test_a_run_that_grows_sees_each_sample_as_often_and_ends_where_stock_ends(given, by_accumulation, tmp_path):
    parts = given.get("gradient_accumulation_steps", 1)
    every = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 0.2}
    stock = Run(str(tmp_path / "stock"), **every, **given).train()
    ours = Run(
        str(tmp_path / "ours"), growing(parts * BATCH, by_accumulation=by_accumulation), **every, **given
    ).train()  # fmt: skip
    state, its = ours.trainer.state, stock.trainer.state
    assert ours.trainer.adaptive.global_batch_size == 8 * parts * BATCH
    assert len(ours.watch.steps) < 0.7 * len(stock.watch.steps)
    if not given.get("dataloader_drop_last"):  # the samples left out differ from epoch to epoch
        assert Counter(ours.samples) == Counter(stock.samples)
    assert len(ours.samples) == len(stock.samples)
    assert (state.global_step, state.max_steps, state.epoch) == (its.global_step, its.max_steps, its.epoch)
    assert ours.trainer.lr_scheduler.last_epoch == stock.trainer.lr_scheduler.last_epoch
    assert ours.trainer.lr_scheduler.get_last_lr() == stock.trainer.lr_scheduler.get_last_lr()
    # Each at the first step that has seen as many samples; a step may cover two of stock's points.
    for mine, its in ((ours.watch.evaluations, stock.watch.evaluations), (ours.watch.saves, stock.watch.saves)):
        assert mine == sorted({next(step for step in ours.watch.steps if step >= point) for point in its})
    if not given:
        assert len(ours.watch.saves) == len(stock.watch.saves) == 5
    assert ours.watch.begun == [0, *ours.watch.steps[:-1]]
    sizes = Counter(map(len, ours.trainer.seen))
    assert max(sizes) == (BATCH if by_accumulation else max(sizes)) and (by_accumulation or max(sizes) > BATCH)


def test_the_logged_loss_is_the_mean_over_samples(tmp_path):
    """With a learning rate of 0 each epoch's loss is the mean of the samples' losses, however they are batched."""
    still = {"learning_rate": 0.0, "logging_strategy": "epoch", "gradient_accumulation_steps": 2}
    model = lambda: llama(attention_dropout=0.0)  # noqa: E731
    data = Texts(12 * BATCH)  # so that no step is short, which a mean over steps would count like others
    stock = Run(str(tmp_path / "stock"), model=model, data=data, **still).train()
    for by_accumulation in (False, True):
        grows = growing(2 * BATCH, by_accumulation=by_accumulation)
        ours = Run(str(tmp_path / "ours"), grows, model=model, data=data, **still).train()
        assert len(ours.watch.steps) < len(stock.watch.steps)
        assert ours.logged("loss") == pytest.approx(stock.logged("loss"), rel=1e-5)
        assert ours.output.training_loss == pytest.approx(stock.output.training_loss, rel=1e-5)


class NowAndThenNan(Watched):
    """Has no loss to show for every fourth batch."""

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        return loss * float("nan") if len(self.seen) % 4 == 3 else loss


@pytest.mark.parametrize("ever", ["grown", "shrunk"])
def test_a_loss_that_is_nan_is_left_out_of_the_mean(ever, tmp_path, monkeypatch):
    """Trainer takes the mean of the others for it, as of one step. It may stand for more, or for none."""
    still = {"learning_rate": 0.0, "logging_strategy": "no", "model": lambda: llama(attention_dropout=0.0)}
    size = {"target": lambda noise_scale, size, progress: BATCH // 2} if ever == "shrunk" else {}
    losses = []
    for kind in (Watched, NowAndThenNan):
        monkeypatch.setattr("tests.integration.trainers.transformers_programs.Watched", kind)
        losses.append(Run(str(tmp_path), growing(**size), data=Texts(24 * BATCH), **still).train().output.training_loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


def test_logs_show_batch_and_noise_scale(tmp_path):
    ours = Run(str(tmp_path), growing(), logging_steps=5).train()
    assert ours.logged("batch_size")[0] == BATCH and ours.logged("batch_size")[-1] == 8 * BATCH
    assert ours.logged("global_batch_size") == ours.logged("batch_size")
    assert all(number > 0 for number in ours.logged("noise_scale"))
    assert ours.logged("noise_scale"), "no noise scale was logged"
    assert len(ours.logged("loss")) == len(ours.logged("batch_size"))


class Recorded(Watched):
    """Keeps the gradient that each optimizer step is made of."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gradients = []
        self.add_callback(KeepsGradients(self))


class KeepsGradients(TrainerCallback):
    def __init__(self, trainer):
        self._trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self._trainer.gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]).clone())


class Mean(nn.Module):
    """A mean loss of its own, which takes num_items_in_batch and leaves it alone; `accepts` says that it takes it."""

    def __init__(self, accepts: bool):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(40, 8), nn.Linear(8, 40)
        self.accepts_loss_kwargs = accepts

    def forward(self, input_ids, labels=None, **kwargs):
        logits = self.head(self.embedding(input_ids))
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def own_loss(outputs, labels, num_items_in_batch=None):
    logits = outputs["logits"][:, :-1].flatten(0, 1)
    return nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch


KINDS = {
    "token mean": ({"model": lambda: llama(attention_dropout=0.0)}, True),
    "mean of a batch": ({"model": lambda: Mean(False)}, False),
    "mean of a batch that says otherwise": ({"model": lambda: Mean(True)}, False),
    "own function": ({"model": lambda: llama(attention_dropout=0.0), "trainer": {"compute_loss_func": own_loss}}, True),
}


@pytest.mark.parametrize(("kind", "padded"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("parts", [1, 2])
def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch(kind, padded, parts, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.integration.trainers.transformers_programs.Watched", Recorded)
    data = Texts(16 * BATCH, padded=padded)
    still = {"learning_rate": 0.0, "gradient_accumulation_steps": parts, "num_train_epochs": 1, "max_grad_norm": 0.0}
    gradients = []
    for by_accumulation in (False, True):
        grows = growing(parts * BATCH, by_accumulation=by_accumulation)
        ours = Run(str(tmp_path), grows, data=data, **kind, **still).train()
        gradients.append(torch.stack(ours.trainer.gradients))
    assert len(gradients[0]) < 16 / parts
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_early_stopping_and_the_best_model(tmp_path):
    better = {"metric_for_best_model": "loss", "load_best_model_at_end": True, "eval_strategy": "steps",
              "eval_steps": 6, "save_strategy": "steps", "save_steps": 6, "learning_rate": 0.2}  # fmt: skip
    stop = {"trainer": {"callbacks": [EarlyStoppingCallback(2)]}}
    ours = Run(str(tmp_path), growing(), **stop, **better, num_train_epochs=30).train()
    state = ours.trainer.state
    assert state.global_step < state.max_steps
    assert ours.watch.evaluations[-1] == state.global_step
    best = min((entry["eval_loss"], entry["step"]) for entry in state.log_history if "eval_loss" in entry)
    assert (state.best_metric, state.best_global_step) == best
    assert ours.trainer.evaluate()["eval_loss"] == pytest.approx(best[0], rel=1e-4)


def test_an_exception_within_a_step_leaves_no_hook_on_the_model(tmp_path):
    class Fails(AdaptiveTrainer):
        def training_step(self, *args, **kwargs):
            raise KeyboardInterrupt

    trainer = Fails(model=llama(), args=arguments(str(tmp_path)), train_dataset=Texts(UNEVEN), **growing())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not any(module._forward_hooks for module in trainer.model.modules())
    assert not any(parameter._post_accumulate_grad_hooks for parameter in trainer.model.parameters())


def test_a_trainer_of_ones_own_and_a_second_run(tmp_path):
    class Mine(AdaptiveTrainerMixin, Seq2SeqTrainer):
        pass

    args = Seq2SeqTrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", save_strategy="no", num_train_epochs=1, log_level="error",
        per_device_train_batch_size=BATCH, disable_tqdm=True,
    )  # fmt: skip
    trainer = Mine(model_init=lambda: llama(), args=args, train_dataset=Texts(UNEVEN), **growing())
    found = []
    for _ in range(2):
        trainer.train()
        found.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
        assert trainer.adaptive.batch_size == 8 * BATCH
    assert torch.equal(*found)


def test_a_smaller_batch_is_found_as_ever(tmp_path):
    """auto_find_batch_size begins anew with a smaller batch when memory runs out."""

    class Small(Watched):
        def training_step(self, model, inputs, *args, **kwargs):
            if len(inputs["input_ids"]) > 4 and not self.seen:
                raise RuntimeError("CUDA out of memory.")
            return super().training_step(model, inputs, *args, **kwargs)

    from tests.integration.trainers import transformers_programs as programs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "Watched", Small)
        ours = Run(str(tmp_path), OFF, auto_find_batch_size=True, num_train_epochs=1).train()
    assert Counter(map(len, ours.trainer.seen)).most_common(1)[0][0] == 4
    assert Counter(ours.samples) == Counter(range(UNEVEN))


def test_dropout_does_not_hide_that_a_loss_is_divided_by_the_items(tmp_path):
    trainer = Run(str(tmp_path), {}, model=lambda: llama(attention_dropout=0.5)).trainer
    trainer.model.train()
    with torch.no_grad():  # of small random weights the loss is that of guessing, whatever is dropped
        for p in trainer.model.parameters():
            p.mul_(20)
    inputs = trainer.data_collator([Texts(4)[i] for i in range(4)])
    assert trainer._divides_by_items(inputs, torch.tensor(60)) is True


class Counting(Trainer):
    """Weights its loss by the number of calls, as a warm-up does, and collects and logs parts of it, as TRL's do."""

    calls = 0

    def compute_loss(self, model, inputs, *args, **kwargs):
        inputs.pop("index", None)
        self.calls += 1
        loss = super().compute_loss(model, inputs, *args, **kwargs) * min(1.0, self.calls / 20)
        self.parts = getattr(self, "parts", None) or {"train": []}
        self.parts["train"].append(loss.item())
        if self.calls % 10 == 0:
            self.log({"part": sum(self.parts["train"])})
            self.parts["train"].clear()
        return loss


def test_passes_that_are_no_step_leave_what_compute_loss_counts_and_logs(tmp_path):
    class Ours(AdaptiveTrainerMixin, Counting):
        pass

    trainers = []
    for kind, adaptive in ((Counting, {}), (Ours, {"max_batch_size": BATCH, "overhead": 0.5, "source": "halves"})):
        trainers.append(kind(model=llama(), args=arguments(str(tmp_path)), train_dataset=Texts(UNEVEN), **adaptive))
        trainers[-1].train()
    (stock, ours), logged = trainers, [[x["part"] for x in t.state.log_history if "part" in x] for t in trainers]
    assert all(map(torch.equal, stock.model.parameters(), ours.model.parameters()))
    assert ours.calls == stock.calls and ours.parts == stock.parts and logged[0] == logged[1]
    assert ours.adaptive.noise_scale is not None and ours.adaptive.noise_scale.caveat is None

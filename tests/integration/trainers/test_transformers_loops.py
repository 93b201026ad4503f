"""AdaptiveTrainer where callbacks and subclasses take part in Trainer's loop: looks, epochs broken off, samplers."""

from __future__ import annotations

import copy
from collections import Counter
from itertools import chain

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers: `make trainers` runs it in .venv-trainers")

from torch.utils.data import WeightedRandomSampler
from transformers import Trainer, TrainerCallback

from adaptbs.transformers import AdaptiveTrainer, AdaptiveTrainerMixin
from tests.integration.trainers import transformers_programs as programs
from tests.integration.trainers.transformers_programs import (
    BATCH,
    OFF,
    UNEVEN,
    Run,
    Seen,
    Texts,
    arguments,
    forget_accelerate,
    growing,
    llama,
)

EPOCH_STEPS = -(-UNEVEN // BATCH)


@pytest.fixture(autouse=True)
def fresh():
    forget_accelerate()


def stock_and_off(tmp_path, *callbacks, **given):
    """A stock run and one with growth off, both from the same random state."""
    runs = []
    for way, adaptive in (("stock", None), ("off", OFF)):
        torch.manual_seed(0)
        run = Run(str(tmp_path / way), adaptive, trainer={"callbacks": [kind() for kind in callbacks]}, **given)
        runs.append(run.train())
    return runs


def assert_same(ours, stock):
    assert torch.equal(ours.weights, stock.weights)
    assert ours.trainer.seen == stock.trainer.seen
    assert ours.watch.steps == stock.watch.steps
    assert ours.watch.epochs == pytest.approx(stock.watch.epochs, abs=1e-12)
    assert ours.trainer.lr_scheduler.last_epoch == stock.trainer.lr_scheduler.last_epoch


# --- looks at the loader ---


class Looks(TrainerCallback):
    """Looks at batches, as to draw samples or to take statistics."""

    def on_epoch_end(self, args, state, control, train_dataloader=None, **kwargs):
        assert len(next(iter(train_dataloader))["index"]) == BATCH

    def on_log(self, args, state, control, train_dataloader=None, **kwargs):
        with torch.no_grad():
            assert sum(len(batch["index"]) for batch in train_dataloader) == UNEVEN


def test_a_look_at_the_loader_is_no_part_of_the_run(tmp_path, caplog):
    assert_same(*reversed(stock_and_off(tmp_path, Looks, logging_steps=20)))
    run = Run(str(tmp_path), growing(), trainer={"callbacks": [Looks()]}, logging_steps=20).train()
    assert Counter(run.samples) == Counter(3 * list(range(UNEVEN)))
    assert run.trainer.state.global_step == run.trainer.lr_scheduler.last_epoch == 3 * EPOCH_STEPS
    assert run.trainer.adaptive.batch_size == 8 * BATCH
    assert not caplog.records


def test_batches_can_be_looked_at_before_the_run_and_beside_it(tmp_path):
    run = Run(str(tmp_path), growing(), num_train_epochs=1)
    batches = [len(batch["index"]) for batch in run.trainer.get_train_dataloader()]
    assert len(batches) == len(run.trainer.get_train_dataloader()) and sum(batches) == UNEVEN

    class Beside(TrainerCallback):
        def on_log(self, args, state, control, **kwargs):
            loader = run.trainer.get_train_dataloader()
            assert len(loader) == state.max_steps and len(next(iter(loader))["index"]) == BATCH

    run.trainer.add_callback(Beside)
    run.train()
    assert Counter(run.samples) == Counter(range(UNEVEN))
    assert run.trainer.adaptive.batch_size == 8 * BATCH


class Asks(TrainerCallback):
    """Asks the training loader for what a DataLoader has."""

    def __init__(self):
        self.seen = []

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        loader = copy.copy(train_dataloader)
        kinds = [type(part) for part in (loader.dataset, loader.collate_fn, loader.sampler, loader.batch_sampler)]
        self.seen.append((loader.num_workers, loader.drop_last, loader.total_batch_size, kinds))
        assert not hasattr(loader, "no_such")


def test_a_callback_can_ask_the_loader_for_what_the_stock_one_has(tmp_path):
    seen = []
    for way, adaptive in (("stock", None), ("grown", growing())):
        Run(str(tmp_path / way), adaptive, trainer={"callbacks": [asks := Asks()]}, num_train_epochs=2).train()
        seen.append(asks.seen)
    assert seen[0] == seen[1] and len(seen[0]) == 2


# --- epochs that are broken off ---


class HalfEpochs(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_epoch_stop = state.epoch % 1 > 0.5


def test_epochs_that_a_callback_breaks_off_are_counted_as_stocks(tmp_path):
    stock, ours = stock_and_off(tmp_path, HalfEpochs)
    assert_same(ours, stock)
    half = EPOCH_STEPS // 2 + 1
    assert ours.trainer.state.global_step == 3 * half
    grown = Run(str(tmp_path), growing(), trainer={"callbacks": [HalfEpochs()]}).train()
    assert 3 * half <= grown.trainer.state.global_step == grown.trainer.lr_scheduler.last_epoch < 3 * half + 4
    assert grown.trainer.state.epoch == pytest.approx(2 + half / EPOCH_STEPS, abs=4 / EPOCH_STEPS)
    assert 3 * half * BATCH <= len(grown.samples) < (3 * half + 4) * BATCH


def test_a_run_with_an_epoch_that_was_broken_off_goes_on_from_a_checkpoint(tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 10, "trainer": {"callbacks": [HalfEpochs()]}}
    whole = Run(str(tmp_path / "whole"), growing(), **saves).train()
    at = next(step for step in whole.watch.saves if step > EPOCH_STEPS // 2 + 1)
    rest = Run(str(tmp_path / "rest"), growing(), **saves)
    rest.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{at}"))
    following = [step for step in whole.watch.steps if step > at]
    assert rest.watch.steps[: len(following)] == following
    assert rest.watch.epochs[: len(following)] == whole.watch.epochs[-len(following) :]


class HalfSteps(TrainerCallback):
    """Breaks an epoch off between two batches of a step."""

    def on_substep_end(self, args, state, control, **kwargs):
        control.should_epoch_stop = state.global_step > 0 and state.epoch % 1 > 0.5


def test_a_step_that_is_broken_off_between_its_batches_is_not_counted(tmp_path):
    given = {"gradient_accumulation_steps": 3, "save_strategy": "epoch"}
    stock, ours = stock_and_off(tmp_path, HalfSteps, **given)
    assert_same(ours, stock)
    assert ours.logged("step") == stock.logged("step") and ours.watch.saves == stock.watch.saves
    assert ours.trainer.state.global_step == len(ours.watch.steps) < EPOCH_STEPS
    rest = Run(str(tmp_path / "rest"), OFF, **given)
    rest.train(resume_from_checkpoint=str(tmp_path / "off" / f"checkpoint-{ours.watch.saves[0]}"))
    assert rest.watch.steps[0] == ours.watch.saves[0] + 1


class Stops(TrainerCallback):
    """Notes whether an epoch's end says that it was broken off."""

    def __init__(self):
        self.seen = []

    def on_epoch_end(self, args, state, control, **kwargs):
        self.seen.append(control.should_epoch_stop)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("given", [{}, {"max_steps": 30}, {"num_train_epochs": 1.5, "dataloader_num_workers": 1}])
def test_a_batch_that_becomes_smaller_than_the_first_leaves_no_sample_out(parts, given, tmp_path):
    """As it does by itself, early in a run that begins with more than 64: Trainer's loop has no steps for it."""
    accumulated = {"gradient_accumulation_steps": parts, **given, "save_strategy": "steps", "save_steps": 5}
    stock = Run(str(tmp_path / "stock"), **accumulated).train()
    shrinks = growing(target=lambda noise_scale, size, progress: size if progress < 0.3 else parts * BATCH // 2)
    ours = Run(str(tmp_path / "ours"), shrinks, **accumulated, trainer={"callbacks": [stops := Stops()]}).train()
    state, its = ours.trainer.state, stock.trainer.state
    assert ours.trainer.adaptive.global_batch_size == parts * BATCH // 2
    assert len(ours.watch.steps) > 1.3 * len(stock.watch.steps)
    assert Counter(ours.samples) == Counter(stock.samples)
    assert (state.global_step, state.epoch, state.max_steps) == (its.global_step, its.epoch, its.max_steps)
    assert ours.watch.saves == stock.watch.saves
    assert ours.trainer.lr_scheduler.last_epoch == stock.trainer.lr_scheduler.last_epoch
    assert ours.output.training_loss == pytest.approx(stock.output.training_loss, rel=0.02)
    assert stops.seen and not any(stops.seen)
    at = ours.watch.saves[len(ours.watch.saves) // 2]
    rest = Run(str(tmp_path / "rest"), shrinks, **accumulated)
    rest.train(resume_from_checkpoint=str(tmp_path / "ours" / f"checkpoint-{at}"))
    assert torch.equal(rest.weights, ours.weights)


def test_accumulation_that_a_callback_changes_on_the_way_is_refused(tmp_path):
    class Changes(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            args.gradient_accumulation_steps = 2 if state.epoch else 1

    run = Run(str(tmp_path), growing(), trainer={"callbacks": [Changes()]})
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps=2: the run began with 1"):
        run.train()


# --- samplers whose length is not the dataset's ---


@pytest.mark.parametrize("drawn", [UNEVEN // 2, 2 * UNEVEN + 3])
def test_an_epoch_has_as_many_samples_as_its_sampler_draws(drawn, tmp_path):
    class Draws(Seen, Trainer):
        def _get_train_sampler(self, *args, **kwargs):
            seeded = torch.Generator().manual_seed(1)
            return WeightedRandomSampler(torch.arange(1.0, UNEVEN + 1), drawn, generator=seeded)

    class Adapted(AdaptiveTrainerMixin, Draws):
        pass

    def trained(kind, **adaptive):
        args = arguments(str(tmp_path), num_train_epochs=2)
        trainer = kind(model=llama(), args=args, train_dataset=Texts(UNEVEN), **adaptive)
        trainer.train()
        return trainer

    stock, ours, grown = trained(Draws), trained(Adapted, **OFF), trained(Adapted, **growing())
    assert ours.seen == stock.seen
    assert Counter(chain(*grown.seen)) == Counter(chain(*stock.seen))
    for trainer in (ours, grown):
        assert trainer.state.global_step == trainer.lr_scheduler.last_epoch == stock.state.global_step
        assert trainer.state.epoch == stock.state.epoch == 2


# --- steps and losses of a subclass ---


class OwnStep:
    """A training_step() that calls no other, as one with a pass of its own between the two."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        self.seen.append(inputs.pop("index").tolist())
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        if num_items_in_batch is None:
            loss = loss / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()


def runs_of(kinds, tmp_path, adaptive, **given):
    """A run of each kind of Trainer. The first is a stock one."""
    runs = []
    for number, kind in enumerate(kinds):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(programs, "Watched" if number else "WatchedTrainer", kind)
            torch.manual_seed(0)
            runs.append(Run(str(tmp_path / str(number)), adaptive if number else None, **given).train())
    return runs


@pytest.mark.parametrize("by_accumulation", [False, True], ids=["batch", "micro-batches"])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_training_step_before_the_mixin_is_that_of_each_micro_batch(parts, by_accumulation, tmp_path):
    class Stock(OwnStep, Seen, Trainer):
        pass

    class Behind(AdaptiveTrainerMixin, Stock):
        pass

    class Before(OwnStep, AdaptiveTrainerMixin, Seen, Trainer):
        pass

    given = {"gradient_accumulation_steps": parts, "model": lambda: llama(attention_dropout=0.0)}
    grows = growing(parts * BATCH, by_accumulation=by_accumulation)
    stock, behind, before = runs_of((Stock, Behind, Before), tmp_path, grows, **given)
    assert torch.equal(before.weights, behind.weights) and before.trainer.seen == behind.trainer.seen
    assert before.logged("loss") == behind.logged("loss")
    assert before.output.training_loss == pytest.approx(stock.output.training_loss, rel=0.02)
    assert before.trainer.adaptive.global_batch_size == 8 * parts * BATCH
    assert Counter(before.samples) == Counter(stock.samples)
    assert before.trainer.training_step.__func__ is OwnStep.training_step  # and is called as ever after the run
    off = runs_of((Stock, Before), tmp_path, OFF, **given)[1]
    assert torch.equal(off.weights, stock.weights) and off.logged("loss") == stock.logged("loss")


class OfPairs(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        tokens, labels = inputs
        outputs = model(input_ids=tokens, labels=labels)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class OfItems(Trainer):
    """As those that transformers' documentation makes of `num_items_in_batch`, which is always given."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels, outputs = inputs.pop("labels"), model(input_ids=inputs["input_ids"])
        shown = outputs.logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(shown, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


def in_pairs(items):
    return tuple(torch.stack([item[name] for item in items]) for name in ("input_ids", "labels"))


@pytest.mark.parametrize("by_accumulation", [False, True], ids=["batch", "micro-batches"])
@pytest.mark.parametrize(("kind", "collate"), [(OfPairs, in_pairs), (OfItems, None)], ids=["tuples", "items"])
def test_a_loss_of_ones_own_is_measured_by_halves(kind, collate, by_accumulation, tmp_path, caplog):
    class Ours(AdaptiveTrainerMixin, kind):
        pass

    trainer = Ours(
        model=llama(), args=arguments(str(tmp_path), num_train_epochs=1), train_dataset=Texts(UNEVEN),
        data_collator=collate, **growing(source="halves", by_accumulation=by_accumulation),
    )  # fmt: skip
    trainer.train()
    events = Counter(record["event"] for record in trainer.adaptive.history)
    assert events["measurement"] > 3 and not trainer.adaptive.training_run.measuring.meter.in_step
    assert not caplog.records


OF_METHOD, OF_FUNCTION = Counter(), Counter()


class Counts(Trainer):
    """Counts the calls of its loss in an attribute and in a global variable, as trl's do tokens, and logs them."""

    counted = 0

    def compute_loss(self, model, inputs, *args, **kwargs):
        inputs.pop("index", None)
        OF_METHOD["calls"] += 1
        self.counted += 1
        self.log({"calls": self.counted})
        return super().compute_loss(model, inputs, *args, **kwargs)


def counting(outputs, labels, num_items_in_batch=None):
    OF_FUNCTION["calls"] += 1
    shown = outputs.logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(shown, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch


class OursCounts(AdaptiveTrainerMixin, Counts):
    def training_step(self, *args, **kwargs):
        self.counted_steps = vars(self).get("counted_steps", 0) + 1
        return super().training_step(*args, **kwargs)


@pytest.mark.parametrize("by_accumulation", [False, True], ids=["batch", "micro-batches"])
@pytest.mark.parametrize("source", ["in_step", "halves"])
def test_what_a_loss_counts_are_its_calls_in_steps(source, by_accumulation, tmp_path):
    OF_METHOD.clear()
    OF_FUNCTION.clear()
    trainer = OursCounts(
        model=llama(), args=arguments(str(tmp_path), num_train_epochs=1), train_dataset=Texts(UNEVEN),
        compute_loss_func=counting, **growing(source=source, by_accumulation=by_accumulation),
    )  # fmt: skip
    trainer.train()
    steps = trainer.counted_steps
    assert trainer.adaptive.global_batch_size == 8 * BATCH
    assert (trainer.counted, OF_METHOD["calls"], OF_FUNCTION["calls"]) == (steps, steps, steps)
    assert [entry["calls"] for entry in trainer.state.log_history if "calls" in entry] == list(range(1, steps + 1))


def packed(items):
    """All samples in one row, as DataCollatorWithFlattening."""
    tokens = torch.cat([item["input_ids"] for item in items])[None]
    places = torch.arange(16).repeat(len(items))[None]
    return {"input_ids": tokens, "labels": tokens.clone(), "position_ids": places}


def packed_with_lengths(items):
    """As trl's and transformers' collators do for flash attention: where each text begins, beside the one row."""
    return {**packed(items), "cu_seq_lens_q": 16 * torch.arange(len(items) + 1, dtype=torch.int32)}


class WithoutLengths(AdaptiveTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        inputs.pop("cu_seq_lens_q", None)
        return super().compute_loss(model, inputs, *args, **kwargs)


@pytest.mark.parametrize(("packed", "size"), [(packed, BATCH), (packed_with_lengths, BATCH), (packed_with_lengths, 2)])
@pytest.mark.parametrize("by_accumulation", [False, True], ids=["batch", "micro-batches"])
def test_samples_that_are_packed_into_one_row_hold_the_batch_with_the_reason(
    packed, size, by_accumulation, tmp_path, caplog
):
    trainer = WithoutLengths(
        model=llama(), args=arguments(str(tmp_path), num_train_epochs=1, per_device_train_batch_size=size),
        train_dataset=Texts(UNEVEN), data_collator=packed, by_accumulation=by_accumulation, overhead=0.5,
    )  # fmt: skip
    trainer.train()
    (warned,) = caplog.messages
    assert "into one sequence" in warned and "cannot be measured, so the batch size is held" in warned
    assert trainer.adaptive.batch_size == size and trainer.state.global_step == -(-UNEVEN // size)


class Pairs(Texts):
    """Two texts of different lengths for each sample."""

    def __getitem__(self, i):
        return {"chosen": self.tokens[i], "rejected": self.tokens[i].flip(0)}


def chosen_first(items):
    """Two rows a sample: first all that were chosen, then all that were rejected, as trl's for preferences."""
    return {"input_ids": torch.stack([item[name] for name in ("chosen", "rejected") for item in items])}


def of_pairs(batch, start, stop):
    rows = batch["input_ids"]
    n = len(rows) // 2
    return {"input_ids": torch.cat([rows[start:stop], rows[n + start : n + stop]])}


class Prefers(AdaptiveTrainer):
    """The loss of a pair, of the margin between its texts, as DPO's."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        tokens = inputs["input_ids"]
        logits = model(input_ids=tokens).logits[:, :-1].log_softmax(-1)
        chosen, rejected = logits.gather(2, tokens[:, 1:, None]).sum((1, 2)).chunk(2)
        return -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()


@pytest.mark.parametrize("by_accumulation", [False, True], ids=["batch", "micro-batches"])
def test_two_rows_a_sample_hold_the_batch_or_are_cut_by_split(by_accumulation, tmp_path, caplog):
    def trained(**given):
        trainer = Prefers(
            model=llama(attention_dropout=0.0), args=arguments(str(tmp_path), num_train_epochs=1),
            train_dataset=Pairs(UNEVEN), data_collator=chosen_first,
            **growing(by_accumulation=by_accumulation, **given),
        )  # fmt: skip
        trainer.train()
        return trainer

    held = trained()
    (warned,) = caplog.messages
    assert "16 rows of 8 samples" in warned and "as of a pair, if split=(batch, start, stop) -> batch" in warned
    assert held.adaptive.batch_size == BATCH and held.adaptive.noise_scale.doubt == "rows are not samples"
    caplog.clear()
    grown = trained(source="halves", split=of_pairs)
    assert grown.adaptive.batch_size == 8 * BATCH and not caplog.messages
    measured = [record for record in grown.adaptive.history if record["event"] == "measurement"]
    assert len(measured) > 3 and all(record["batch_size"] % BATCH == 0 for record in measured[:-1])


class Substeps(TrainerCallback):
    """Counts the events within steps."""

    def __init__(self):
        self.counts = Counter()

    def on_step_begin(self, args, state, control, **kwargs):
        self.counts["step"] += 1

    def on_substep_end(self, args, state, control, **kwargs):
        self.counts["substep"] += 1


def test_with_growth_off_there_are_as_many_events_within_steps(tmp_path):
    counts = []
    for way, adaptive in (("stock", None), ("off", OFF)):
        events = Substeps()
        Run(str(tmp_path / way), adaptive, trainer={"callbacks": [events]}, gradient_accumulation_steps=4).train()
        counts.append(events.counts)
    assert counts[0] == counts[1] == {"step": 3 * 7, "substep": 3 * (EPOCH_STEPS - 7)}


def test_with_growth_off_an_epoch_that_goes_on_has_as_many_events_within_steps(tmp_path):
    """The last step of an epoch has two batches in place of four."""
    given, counts = {"gradient_accumulation_steps": 4, "save_strategy": "steps", "save_steps": 3}, []
    for way, adaptive in (("stock", None), ("off", OFF)):
        Run(str(tmp_path / way), adaptive, num_train_epochs=1, **given).train()
        rest = Run(str(tmp_path / way), adaptive, trainer={"callbacks": [events := Substeps()]}, **given)
        rest.train(resume_from_checkpoint=str(tmp_path / way / "checkpoint-3"))
        counts.append(events.counts)
    assert counts[0] == counts[1] == {"step": 3 * 7 - 3, "substep": 3 * (EPOCH_STEPS - 7) - 9}

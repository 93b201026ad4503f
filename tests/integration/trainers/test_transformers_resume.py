"""A Trainer's run that goes on from a checkpoint ends in the weights of the one that was not stopped."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers: `make trainers` runs it in .venv-trainers")

from transformers import TrainerState

from tests.integration.trainers.transformers_programs import BATCH, OFF, Run, forget_accelerate, growing


@pytest.fixture(autouse=True)
def fresh():
    forget_accelerate()


CASES = {
    "batch": ({}, {}),
    "micro-batches": ({"by_accumulation": True}, {}),
    "accumulation": ({"target": None}, {"gradient_accumulation_steps": 2, "num_train_epochs": 2}),
    "steps, workers": ({}, {"max_steps": 40, "dataloader_num_workers": 1}),
    "at epochs": ({}, {"save_strategy": "epoch", "num_train_epochs": 2}),
}


@pytest.mark.parametrize(("adaptive", "given"), CASES.values(), ids=CASES)
def test_it_ends_in_the_same_weights(adaptive, given, tmp_path):
    parts = given.get("gradient_accumulation_steps", 1)
    others = {**growing(parts * BATCH), **{name: value for name, value in adaptive.items() if value}}
    saves = {"save_strategy": "steps", "save_steps": 9, **given}
    whole = Run(str(tmp_path / "whole"), others, **saves).train()
    assert whole.trainer.adaptive.global_batch_size == 8 * parts * BATCH
    for step in whole.watch.saves[:: max(len(whole.watch.saves) // 3, 1)]:
        rest = Run(str(tmp_path / "rest"), others, **saves)
        rest.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert torch.equal(rest.weights, whole.weights), step
        assert rest.watch.steps == [at for at in whole.watch.steps if at > step]
        assert rest.samples == whole.samples[len(whole.samples) - len(rest.samples) :]
        assert rest.trainer.state.epoch == whole.trainer.state.epoch
        assert rest.logged("loss")[-1:] == whole.logged("loss")[-1:]
        assert list(rest.trainer.adaptive.history)[-1] == list(whole.trainer.adaptive.history)[-1]


def test_the_last_checkpoint_is_found(tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 20}
    whole = Run(str(tmp_path), growing(), **saves).train()
    folder = tmp_path / f"checkpoint-{whole.watch.saves[-1]}"
    for path in folder.iterdir():  # the run was stopped before it had written its last one
        path.unlink()
    folder.rmdir()
    rest = Run(str(tmp_path), growing(), **saves).train(resume_from_checkpoint=True)
    assert torch.equal(rest.weights, whole.weights)
    assert not rest.trainer.args.ignore_data_skip  # it was the user's, and is again


def test_a_checkpoint_without_our_state_is_refused(tmp_path):
    Run(str(tmp_path), save_strategy="steps", save_steps=10, num_train_epochs=1).train()
    with pytest.raises(ValueError, match=r"checkpoint-10.* has no adaptbs.pt.*transformers.Trainer"):
        Run(str(tmp_path), growing(), num_train_epochs=1).train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))


def test_a_checkpoint_of_the_model_alone_has_no_state(tmp_path):
    Run(str(tmp_path), growing(), save_only_model=True, save_strategy="epoch", num_train_epochs=1).train()
    assert not list(tmp_path.glob("*/adaptbs.pt")) and list(tmp_path.glob("checkpoint-*"))


def test_a_checkpoint_that_is_deleted_as_soon_as_it_is_written(tmp_path):
    """As those of a second run, for which the first has left newer ones than `save_total_limit` allows."""
    saves = {"save_strategy": "steps", "save_steps": 20, "save_total_limit": 1, "num_train_epochs": 2}
    stock = Run(str(tmp_path / "stock"), **saves).train().train()
    ours = Run(str(tmp_path / "ours"), growing(), **saves).train().train()
    kept = [sorted(path.name for path in (tmp_path / way).iterdir()) for way in ("stock", "ours")]
    assert kept[0] == kept[1] == [f"checkpoint-{stock.trainer.state.global_step}"]
    assert (tmp_path / "ours" / kept[1][0] / "adaptbs.pt").is_file() and ours.watch.saves


def test_the_state_is_in_the_checkpoint_before_trainer_says_that_it_is_whole(tmp_path, monkeypatch):
    """Trainer pushes it to the hub then, and before `on_save`."""
    found, save = [], TrainerState.save_to_json

    def noted(self, path):
        found.append((Path(path).parent / "adaptbs.pt").is_file())
        save(self, path)

    monkeypatch.setattr(TrainerState, "save_to_json", noted)
    Run(str(tmp_path), growing(), save_strategy="epoch").train()
    assert found == [True] * 3


@pytest.mark.parametrize("given", [{}, {"dataloader_drop_last": True}], ids=str)
@pytest.mark.parametrize("longer", [36, 52])
def test_a_run_that_has_ended_within_an_epoch_goes_on_with_the_rest_of_it(longer, given, tmp_path):
    """From its last checkpoint, and from one before in that epoch. 52 steps are whole epochs, but for drop_last."""
    saves, runs = {"save_strategy": "steps", "save_steps": 2, "data_seed": 3, **given}, {}
    for way, adaptive in (("stock", None), ("off", OFF), ("grown", growing())):
        first = Run(str(tmp_path / way), adaptive, max_steps=30, **saves).train()
        for at in (first.watch.saves[-1], next(step for step in first.watch.saves if step > 26)):
            rest = Run(str(tmp_path / "rest"), adaptive, max_steps=longer, **saves)
            rest.train(resume_from_checkpoint=str(tmp_path / way / f"checkpoint-{at}"))
            begun = [batch for step, batch in zip(first.watch.steps, first.trainer.seen, strict=True) if step <= at]
            runs[way, at] = rest, Counter(chain(*begun, rest.samples))
    stocks = Counter()
    for (way, at), (rest, samples) in runs.items():
        state = rest.trainer.state
        assert (state.global_step, state.epoch) == (longer, runs["stock", 30][0].trainer.state.epoch)
        assert rest.trainer.lr_scheduler.last_epoch == longer
        if way == "stock":
            stocks = samples
        elif way == "off":
            assert torch.equal(rest.weights, runs["stock", at][0].weights)
            assert rest.trainer.seen == runs["stock", at][0].trainer.seen
        assert samples == stocks if not given.get("dataloader_drop_last") else samples.total() == stocks.total()

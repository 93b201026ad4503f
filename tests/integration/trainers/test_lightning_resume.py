"""adaptbs.lightning: a fit resumed from any of its checkpoints ends in the weights of the unbroken one."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest
import torch

pytest.importorskip("lightning", reason="needs lightning: `make trainers` runs it in .venv-trainers")

from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset

from tests.integration.trainers.lightning_programs import BATCH, Module, fitted, growing, off
from tests.integration.trainers.test_lightning_stock import Manual
from tests.integration.training import Numbered

CASES = {
    "in mid-epoch": ({"every_n_train_steps": 15}, {}),
    "of an accumulated run": ({"every_n_train_steps": 15}, {"accumulate_grad_batches": 2}),
    "with workers": ({"every_n_train_steps": 40}, {"loader": {"num_workers": 2}}),
    "at an epoch's end": ({"every_n_epochs": 1}, {}),
    "at an epoch's last batch": ({"every_n_train_steps": 26}, {}),
    "at a last batch, validated each second epoch": ({"every_n_train_steps": 26}, {"check_val_every_n_epoch": 2}),
    "before a validation": ({"every_n_train_steps": 13}, {"val_check_interval": 0.5, "check_val_every_n_epoch": 2}),
    "after a validation": ({"monitor": "valid"}, {"val_check_interval": 0.5}),
    "of a run that ends by steps": ({"every_n_train_steps": 40}, {"max_steps": 90, "max_epochs": -1}),
    "at its epoch's end": ({"every_n_epochs": 1}, {"max_steps": 90, "max_epochs": -1}),
    "at an epoch's end of a run by steps": (
        {"every_n_epochs": 1, "save_on_train_epoch_end": True},
        {"max_steps": 90, "max_epochs": -1, "check_val_every_n_epoch": 3},
    ),
    "of a limited epoch": ({"every_n_train_steps": 15}, {"limit_train_batches": 20}),
    "of a schedule by hand": ({"every_n_train_steps": 40}, {"module": Manual}),
}


@pytest.mark.parametrize("way", [growing, off], ids=["grown", "off"])
@pytest.mark.parametrize(("saves", "trainer"), CASES.values(), ids=CASES)
def test_it_ends_in_the_weights_of_the_unbroken_fit(saves, trainer, way, tmp_path):
    def fit(folder, **others):
        saving = ModelCheckpoint(folder, "{step:03d}", save_top_k=-1, **saves)
        callback = growing(BATCH * trainer.get("accumulate_grad_batches", 1)) if way is growing else off()
        return fitted(callback, callbacks=[saving], **trainer, **others)

    whole = fit(tmp_path / "whole")
    saved = sorted((tmp_path / "whole").iterdir())
    assert len(saved) >= 2
    for checkpoint in saved[:: max(len(saved) // 3, 1)]:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "You're resuming from a checkpoint")
            rest = fit(tmp_path / checkpoint.stem, seed=9, checkpoint=str(checkpoint))
        assert torch.equal(rest.weights, whole.weights), checkpoint.name
        came_before = len(whole.saw.indices) - len(rest.saw.indices)
        assert all(map(torch.equal, rest.saw.indices, whole.saw.indices[came_before:]))
        assert rest.saw.epochs == whole.saw.epochs[came_before:]
        for name in ("steps", "lrs", "is_last"):
            assert getattr(rest.saw, name) == getattr(whole.saw, name)[came_before:], name
        assert (
            rest.saw.validated == []
            or [step for step, _ in rest.saw.validated]
            == [step for step, _ in whole.saw.validated][-len(rest.saw.validated) :]
        )
        assert rest.trainer.global_step == whole.trainer.global_step


def test_validations_and_checkpoints_go_on_as_often(tmp_path):
    def fit(folder, **others):
        saving = ModelCheckpoint(folder, "{step:03d}", save_top_k=-1, every_n_train_steps=15)
        return fitted(growing(), callbacks=[saving], val_check_interval=0.25, **others)

    whole = fit(tmp_path / "whole")
    saved = sorted(path.name for path in (tmp_path / "whole").iterdir())
    rest = fit(tmp_path / "rest", seed=9, checkpoint=str(tmp_path / "whole" / saved[1]))
    assert sorted(path.name for path in (tmp_path / "rest").iterdir()) == saved[2:]
    after = [step for step, _ in whole.saw.validated if step > 31]
    assert [step for step, _ in rest.saw.validated] == after


def plain():
    return Module(schedule=None)


def test_a_run_that_ended_within_an_epoch_goes_on_with_more_steps(tmp_path):
    saving = ModelCheckpoint(tmp_path, "{step:03d}", save_top_k=-1, every_n_epochs=1)
    first = fitted(growing(), plain, callbacks=[saving], max_steps=60, max_epochs=-1)
    rest = fitted(growing(), plain, checkpoint=str(tmp_path / "step=060.ckpt"), max_steps=104, max_epochs=-1)
    assert rest.trainer.global_step == 104
    assert set(Counter([*first.saw.epoch(2), *rest.saw.epoch(2)]).values()) == {1}
    assert {len(first.saw.epoch(2)) + len(rest.saw.epoch(2)), len(rest.saw.epoch(3))} == {203}


def test_a_run_goes_on_for_more_epochs(tmp_path):
    saving = ModelCheckpoint(tmp_path, "{step:03d}", save_top_k=-1, every_n_train_steps=30)
    first = fitted(growing(), plain, callbacks=[saving], max_epochs=2)
    callback = growing()
    rest = fitted(callback, plain, checkpoint=str(tmp_path / "step=030.ckpt"), max_epochs=4)
    assert rest.trainer.global_step == 104
    assert set(Counter(rest.saw.epoch(3)).values()) == {1}
    assert sum(rest.saw.sizes) < sum(first.saw.sizes) + 2 * 203
    assert callback.progress == 1


def test_a_stock_checkpoint_and_one_of_ours_without_the_callback(tmp_path):
    for before, after in ((None, growing()), (growing(), None)):
        folder = tmp_path / ("stock" if before is None else "ours")
        saving = ModelCheckpoint(folder, "{step:03d}", save_top_k=-1, every_n_epochs=1)
        fitted(before, plain, callbacks=[saving], max_epochs=2)
        rest = fitted(after, plain, checkpoint=str(folder / "step=052.ckpt"), max_epochs=4)
        assert rest.trainer.global_step == 104
        assert all(set(Counter(rest.saw.epoch(e)).values()) == {1} for e in (2, 3))


@pytest.mark.parametrize(
    "trainer",
    [{}, {"accumulate_grad_batches": 2}, {"max_steps": 60, "max_epochs": -1}, {"module": Manual}],
    ids=["epochs", "accumulated", "max_steps", "manual"],
)
def test_a_stock_checkpoint_within_an_epoch(trainer, tmp_path):
    """What is left of the epoch is trained on, and no more: a schedule of as many steps had ended the run."""

    def fit(callback, folder, **others):
        saving = ModelCheckpoint(tmp_path / folder, "{step:03d}", save_top_k=-1, every_n_train_steps=17)
        return fitted(callback, callbacks=[saving], **trainer, **others)

    parts = trainer.get("accumulate_grad_batches", 1)
    fit(None, "whole")
    saved = str(tmp_path / "whole" / "step=017.ckpt")
    stock, same = (fit(way, name, seed=9, checkpoint=saved) for way, name in ((None, "stock"), (off(), "off")))
    assert torch.equal(same.weights, stock.weights)
    assert all(map(torch.equal, same.saw.indices, stock.saw.indices))
    grown = fit(callback := growing(BATCH * parts), "grown", seed=9, checkpoint=saved)
    assert max(grown.saw.sizes) > BATCH and callback.progress == 1
    for ours in (same, grown):
        assert [len(ours.saw.epoch(e)) for e in range(4)] == [len(stock.saw.epoch(e)) for e in range(4)]
        assert ours.trainer.global_step == stock.trainer.global_step
        assert ours.trainer.current_epoch == stock.trainer.current_epoch
        assert ours.lr_schedulers().last_epoch == stock.lr_schedulers().last_epoch


def test_a_fit_that_began_within_an_epoch_is_resumed_within_it(tmp_path):
    def fit(callback, folder, every, **others):
        saving = ModelCheckpoint(tmp_path / folder, "{step:03d}", save_top_k=-1, every_n_train_steps=every)
        return fitted(callback, callbacks=[saving], **others)

    fit(None, "stock", 7)
    whole = fit(growing(), "whole", 17, seed=9, checkpoint=str(tmp_path / "stock" / "step=007.ckpt"))
    for at in ("017", "051"):  # in the epoch that it began within, and in a later one
        rest = fit(growing(), f"rest {at}", 17, seed=3, checkpoint=str(tmp_path / "whole" / f"step={at}.ckpt"))
        assert torch.equal(rest.weights, whole.weights)
        assert all(map(torch.equal, rest.saw.indices, whole.saw.indices[-len(rest.saw.indices) :]))
        assert rest.trainer.global_step == whole.trainer.global_step


def test_a_validation_that_is_not_made_draws_all_the_same(tmp_path):
    """Lightning leaves out the validation that came after the saved batch, here of two loaders that shuffle."""

    class Two(Module):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            return None

        def val_dataloader(self):
            return [DataLoader(Numbered(32), 16, shuffle=True) for _ in range(2)]

    def fit(folder, **others):
        saving = ModelCheckpoint(tmp_path / folder, "{step:03d}", save_top_k=-1, every_n_train_steps=13)
        return fitted(growing(), Two, callbacks=[saving], valid=False, check_val_every_n_epoch=2, **others)

    whole = fit("whole")
    rest = fit("rest", seed=9, checkpoint=str(tmp_path / "whole" / "step=052.ckpt"))  # the last batch of the second
    assert torch.equal(rest.weights, whole.weights)


class Raises(Callback):
    def __init__(self, hook, at):
        self._left = at
        setattr(self, hook, self._raise)

    def _raise(self, trainer, *_):
        self._left -= not trainer.sanity_checking
        if not self._left:
            raise RuntimeError("on purpose")


@pytest.mark.parametrize("module", [Module, Manual], ids=["automatic", "manual"])
@pytest.mark.parametrize(
    ("hook", "at", "lost"),
    [
        ("on_before_optimizer_step", 9, 1), ("on_train_batch_start", 40, 1), ("on_train_batch_end", 30, 0),
        ("on_validation_batch_start", 5, 0), ("on_validation_epoch_end", 1, 0), ("on_train_epoch_start", 3, 0),
    ],
)  # fmt: skip
def test_a_fit_goes_on_after_an_error(hook, at, lost, module, tmp_path):
    """A batch that an error has ended before its step counts as done. It had been made up for beyond the run's end."""

    def fit(folder, *callbacks, **others):
        saving = ModelCheckpoint(tmp_path / folder, save_on_exception=True, every_n_epochs=1000)
        return fitted(growing(), module, callbacks=[*callbacks, saving], **others)

    whole = fit("whole", max_steps=104, max_epochs=-1)
    with pytest.raises(RuntimeError, match="on purpose"):
        fit("broken", Raises(hook, at), max_steps=104, max_epochs=-1)
    (saved,) = (tmp_path / "broken").iterdir()
    rest = fit("rest", seed=9, checkpoint=str(saved), max_steps=104, max_epochs=-1)
    came_before = len(whole.saw.steps) - len(rest.saw.steps)
    assert rest.saw.steps == whole.saw.steps[came_before:]
    if module is Module or not lost:  # a module that steps its schedule itself has made a call less
        assert rest.saw.lrs == whole.saw.lrs[came_before:]
    assert rest.saw.epochs == whole.saw.epochs[len(whole.saw.epochs) - len(rest.saw.epochs) :]
    assert rest.trainer.global_step == whole.trainer.global_step
    if not lost:
        assert torch.equal(rest.weights, whole.weights)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Numbered(64))

    def __len__(self):
        return 64


def test_a_stock_checkpoint_within_a_stream_is_refused(tmp_path):
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    fitted(None, plain, train=DataLoader(Stream(), BATCH), callbacks=[saving], max_epochs=1)
    with pytest.raises(NotImplementedError, match="go on from a checkpoint of an epoch's end"):
        fitted(growing(), plain, train=DataLoader(Stream(), BATCH), checkpoint=str(tmp_path / "step=3.ckpt"))


def test_a_run_goes_on_with_other_schedulers(tmp_path):
    saving = ModelCheckpoint(tmp_path, "{step:03d}", save_top_k=-1, every_n_train_steps=30)
    fitted(growing(), callbacks=[saving])
    rest = fitted(growing(), plain, checkpoint=str(tmp_path / "step=030.ckpt"))
    assert rest.trainer.global_step == 104


class Fails(Callback):
    def on_fit_start(self, trainer, pl_module):
        raise ValueError("wrong")


def test_a_checkpoint_of_a_fit_that_did_not_begin_is_no_part_of_the_next(tmp_path):
    """The next fit, without a checkpoint, had gone on with the other one's run."""
    fitted(growing(), callbacks=[ModelCheckpoint(tmp_path, every_n_train_steps=40)])
    (saved,) = tmp_path.iterdir()
    callback = growing()
    with pytest.raises(ValueError, match="wrong"):
        fitted(callback, callbacks=[Fails()], checkpoint=str(saved))
    anew, expected = fitted(callback), fitted(growing())
    assert torch.equal(anew.weights, expected.weights) and anew.saw.sizes == expected.saw.sizes


def test_a_state_that_was_given_outlives_a_fit_that_did_not_begin():
    callback = growing()
    fitted(callback)
    state = callback.state_dict()
    callback = growing()
    callback.load_state_dict(state)
    with pytest.raises(ValueError, match="wrong"):
        fitted(callback, callbacks=[Fails()])
    assert callback.state_dict() is state


def test_a_fit_with_nothing_left_to_train_restores_its_strategy(tmp_path):
    fitted(growing(), callbacks=[ModelCheckpoint(tmp_path)])
    (saved,) = tmp_path.iterdir()
    callback = growing()
    rest = fitted(callback, checkpoint=str(saved))
    assert rest.saw.sizes == [] and "process_dataloader" not in vars(rest.trainer.strategy)
    assert callback.state_dict() == {}

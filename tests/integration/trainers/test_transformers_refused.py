"""What AdaptiveTrainer cannot do is refused before training, with the line to write."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="needs transformers: `make trainers` runs it in .venv-trainers")

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler
from transformers import Trainer

from adaptbs.transformers import AdaptiveTrainer, AdaptiveTrainerMixin
from tests.integration.trainers.transformers_programs import (
    BATCH,
    Run,
    Texts,
    arguments,
    forget_accelerate,
    growing,
    llama,
)


@pytest.fixture(autouse=True)
def fresh():
    forget_accelerate()


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Texts(40))


class Given(Trainer):
    """A Trainer that makes its own loader."""

    def get_train_dataloader(self):
        return DataLoader(self.train_dataset, BATCH, shuffle=True)


class Packed(Trainer):
    def get_train_dataloader(self):
        return DataLoader(self.train_dataset, batch_sampler=[[0, 1], [2, 3, 4]])


class Told(BatchSampler):
    """As sentence-transformers' default one: it is told the epoch, and cuts as torch's does."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class ByBatchSampler(Trainer):
    def get_train_dataloader(self):
        return DataLoader(self.train_dataset, batch_sampler=Told(RandomSampler(self.train_dataset), BATCH, False))


def test_a_batch_sampler_that_cuts_as_torchs_does_is_taken_over(tmp_path):
    class Mine(AdaptiveTrainerMixin, ByBatchSampler):
        pass

    given = {"model": llama(), "args": arguments(str(tmp_path), remove_unused_columns=True, num_train_epochs=1)}
    trainer = Mine(**given, train_dataset=WithoutIndex(64), **growing())
    trainer.train()
    assert trainer.adaptive.batch_size > BATCH and trainer.state.global_step == 64 // BATCH


def test_streams(tmp_path):
    with pytest.raises(TypeError, match=r"IterableDataset.*Give a dataset with __len__ and __getitem__"):
        Run(str(tmp_path), growing(), data=Stream(), max_steps=4).train()


def test_batches_that_are_cut_elsewhere(tmp_path):
    with pytest.raises(ValueError, match=r"BatchRebalanceSampler.*take the default strategy"):
        Run(str(tmp_path), growing(), train_sampling_strategy="batch_rebalance").train()

    class Mine(AdaptiveTrainerMixin, Packed):
        pass

    trainer = Mine(model=llama(), args=arguments(str(tmp_path)), train_dataset=Texts(40))
    with pytest.raises(ValueError, match="cut by a list"):
        trainer.train()


def test_a_loader_behind_the_mixin_is_taken_over_and_one_before_it_is_refused(tmp_path):
    class Behind(AdaptiveTrainerMixin, Given):
        pass

    class Before(AdaptiveTrainer):
        get_train_dataloader = Given.get_train_dataloader

    given = {"model": llama(), "args": arguments(str(tmp_path), remove_unused_columns=True, num_train_epochs=1)}
    Behind(**given, train_dataset=WithoutIndex(64), **growing()).train()
    with pytest.raises(TypeError, match=r"does not return.*class Mine\(AdaptiveTrainerMixin, Base"):
        Before(**given, train_dataset=WithoutIndex(64)).train()


class WithoutIndex(Texts):
    def __getitem__(self, i):
        return {key: value for key, value in super().__getitem__(i).items() if key != "index"}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"budget": "progress"}, ValueError, "Leave budget= out"),
        ({"target": "fastest"}, ValueError, "target='fastest'"),
        ({"no_such": 1}, TypeError, "no_such"),
    ],
)
def test_arguments(given, error, message, tmp_path):
    with pytest.raises(error, match=message):
        AdaptiveTrainer(model=llama(), args=arguments(str(tmp_path)), train_dataset=Texts(40), **given)


def test_a_batch_that_is_larger_than_the_dataset(tmp_path):
    with pytest.raises(ValueError, match=f"batch_size={BATCH} is more than the 6 samples"):
        Run(str(tmp_path), growing(), data=Texts(6)).train()

"""A face for a loop of one's own needs no more than a TrainingRun: here one in thirty lines, against the loader."""

from functools import partial

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.hyperparameters import StepHook, traits_of
from adaptbs.run import Settings, TrainingRun
from adaptbs.sampling import AdaptiveBatchSampler, EpochPasses, PassCut

EPOCHS, START = 3, 16
SHARED = {"step_time": (2e-3, 1e-5), "decide_every": 0.1}
CROSS_ENTROPY = nn.CrossEntropyLoss()


def task():
    torch.manual_seed(0)
    x = torch.randn(3000, 20)
    y = (x[:, :5].sum(1) + 1.5 * torch.randn(3000) > 0).long()
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2))
    return TensorDataset(x, y), model, torch.optim.Adam(model.parameters(), 1e-3)


def step(model, optimizer, x, y) -> None:
    CROSS_ENTROPY(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


class Trainer:
    """A made-up trainer with a loop of its own, made adaptive."""

    def __init__(self, dataset, model, optimizer) -> None:
        settings = Settings(**SHARED)
        self.model, self.optimizer = model, optimizer
        self.run = TrainingRun(
            settings, model, optimizer, batch_size=START, epoch_samples=len(dataset),
            adaptive=traits_of(optimizer).adaptive,
        )  # fmt: skip
        self.sampler = AdaptiveBatchSampler(
            RandomSampler(dataset), lambda: self.run.controller.batch_size, START, drop_last=False
        )
        self.loader = DataLoader(dataset, batch_sampler=self.sampler)
        self.hook = StepHook(optimizer, self._scale, settings.following)
        self.run.follow(self.hook.scaler)

    def _scale(self):
        if self.run.measuring.watches:
            self.run.measuring.before_step()
        return self.run.scale()

    def fit(self, epochs: int) -> None:
        self.run.start(epochs)
        self.run.controller.end_by_progress()
        left: PassCut | None = None
        for _ in range(epochs):
            with torch.random.fork_rng(devices=[], enabled=left is not None):  # to go on with a pass draws nothing
                passes = EpochPasses(*self._fetched(left or self.sampler.new_pass()))
            next_pass = partial(self._next_pass, passes)
            for batch in self.run.deliver(passes.fetched, passes.queue, next_pass=next_pass):
                self.run.before_batch(batch)
                step(self.model, self.optimizer, *batch)
            left = passes.cut if self.run.goes_on and passes.left_over() else None

    def _fetched(self, cut):
        with self.sampler.over(cut):
            return cut, iter(self.loader)

    def _next_pass(self, passes):
        passes.go_on_with(*self._fetched(self.sampler.new_pass(after=passes.end_pass())))
        return passes.fetched


def test_it_decides_and_trains_as_the_loader_does_to_the_bit():
    dataset, model, optimizer = task()
    trainer = Trainer(dataset, model, optimizer)
    torch.manual_seed(1)
    trainer.fit(EPOCHS)

    dataset, other, optimizer = task()
    loader = AdaptiveDataLoader(dataset, START, shuffle=True, model=other, optimizer=optimizer, epochs=EPOCHS, **SHARED)
    torch.manual_seed(1)
    for _ in loader.epochs(EPOCHS):
        for x, y in loader:
            step(other, optimizer, x, y)

    assert trainer.run.controller.history.records == loader.history.records
    assert max(loader.history.to_dict()["batch_size"]) > 4 * START
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_its_state_is_that_of_a_run_and_another_goes_on_from_it():
    dataset, model, optimizer = task()
    trainer = Trainer(dataset, model, optimizer)
    trainer.fit(1)
    state = trainer.run.state_dict()
    again = Trainer(*task())
    again.run.start(1)
    again.run.load_state_dict(state)
    assert again.run.controller.history.records == trainer.run.controller.history.records
    assert again.run.controller.batch_size == trainer.run.controller.batch_size > START

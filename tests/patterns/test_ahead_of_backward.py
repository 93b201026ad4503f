"""Loops that fetch the next batch between the forward and the backward pass of one, as nanoGPT's, or step by a closure:
each step is made at its own batch's hyperparameters and measured on its own rows, also where a pass begins anew."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from adaptbs import AdaptiveDataLoader
from tests.integration.training import Numbered

N, BATCH, LR = 408, 16, 0.01  # samples: of no whole number of batches


class Run:
    """Notes, at each step, the samples that it is made of and its learning rate."""

    def __init__(self, every: int = 1, grow: bool = True, stock: bool = False, **arguments) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        self.optimizer = SGD(self.model.parameters(), LR)
        self.every, self.passes, self.steps, self.seen = every, 0, [], []
        self.loader = DataLoader(Numbered(N), BATCH, shuffle=True)
        if not stock:
            self.loader = AdaptiveDataLoader.from_loader(
                self.loader, model=self.model, optimizer=self.optimizer, epochs=3, accumulation_steps=every,
                target=lambda noise, size, progress: int(BATCH * every * (1 + 3 * grow * progress)),
                lr_scaling="linear", overhead=0.5, step_time=(1e-3, 1e-5), decide_every=0.02, **arguments,
            )  # fmt: skip
            self.optimizer.register_step_pre_hook(self.note)

    def note(self, optimizer, *_) -> None:
        self.steps.append((self.of_step, optimizer.param_groups[0]["lr"]))

    def fetch(self):
        try:
            return next(self.batches)
        except StopIteration:
            self.passes += 1
            self.batches = iter(self.loader)
            return next(self.batches)

    def like_nanogpt(self, passes: int = 3) -> Run:
        self.batches = iter(self.loader)
        batch = self.fetch()
        while self.passes < passes:
            self.of_step = []
            for _ in range(self.every):
                x, y, i = batch
                loss = nn.functional.mse_loss(self.model(x), y) / self.every
                self.of_step.append(len(x))
                self.seen += i.tolist()
                batch = self.fetch()
                loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return self

    def by_closures(self) -> Run:
        for _ in range(3):
            for x, y, i in self.loader:

                def closure(x=x, y=y):
                    self.optimizer.zero_grad()
                    loss = nn.functional.mse_loss(self.model(x), y)
                    loss.backward()
                    return loss

                self.of_step = [len(x)]
                self.optimizer.step(closure)
                self.seen += i.tolist()
        return self


@pytest.mark.parametrize("every", [1, 4])
def test_with_growth_off_it_is_the_stock_loaders_run(every):
    ours, stock = Run(every, grow=False).like_nanogpt(), Run(every, stock=True).like_nanogpt()
    assert ours.seen == stock.seen
    for mine, its in zip(ours.model.parameters(), stock.model.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_each_step_is_made_at_its_own_batchs_rate_across_the_ends_of_passes(caplog):
    run = Run().like_nanogpt()
    rates = {}  # by size, of batches that are no short last one
    for (size,), lr in run.steps:
        rates.setdefault(size, set()).add(lr)
    assert run.loader.batch_size > 2 * BATCH and not caplog.records
    assert sorted(run.seen[:N]) == sorted(run.seen[N : 2 * N]) == sorted(run.seen[2 * N :]) == list(range(N))
    right = [abs(lr - LR * size / BATCH) < 1e-9 for (size,), lr in run.steps]
    tails = [at for at, is_right in enumerate(right) if not is_right]
    assert len(tails) <= 2 * 3, "only at the end of a pass, where the last steps are shorter than they were cut"
    ends, samples = [], 0
    for at, ((size,), _) in enumerate(run.steps):
        samples += size
        if samples % N == 0:
            ends.append(at)
    assert all(any(end - 1 <= at <= end for end in ends) for at in tails)


@pytest.mark.parametrize(("loop", "every"), [("like_nanogpt", 1), ("like_nanogpt", 4), ("by_closures", 1)])
def test_what_is_measured_has_the_rows_of_its_step(loop, every, caplog):
    run = getattr(Run(every), loop)()
    made = [record for record in run.loader.history.records if record["event"] == "measurement"]
    assert len(made) > 3 and not caplog.records
    assert {record["doubt"] for record in made} <= {None, "few measurements", "not finite"}
    assert run.loader.training_run.measuring.meter is not None and run.loader.training_run.measuring.meter.in_step


def test_saved_between_the_fetch_of_a_passs_first_batch_and_the_step_on_the_last_before(tmp_path):
    run = Run()
    run.batches, saved = iter(run.loader), None
    batch = run.fetch()
    for _ in range(60):
        before, (x, y, i) = run.passes, batch
        loss = nn.functional.mse_loss(run.model(x), y)
        run.of_step = [len(x)]
        run.seen += i.tolist()
        batch = run.fetch()
        loss.backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
        if run.passes > before:
            saved = run.loader.state_dict()
            break
    assert sorted(run.seen) == list(range(N)) and saved is not None
    again = Run()
    again.loader.load_state_dict(saved)
    first = next(iter(again.loader))
    assert torch.equal(first[2], batch[2]), "the batch that was fetched ahead comes first"

"""A saved run goes on with more or fewer ranks, at the same global batch."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from adaptbs import AdaptiveDataLoader
from tests.integration.rank_programs import Numbered, X, batch_loss, flat, network

GLOBAL, EPOCHS, STOP = 16, 3, 12  # samples of the first steps, epochs, steps until the run is stopped
SAMPLES = len(X)


def doubling_to_64(noise_scale, batch_size, progress):
    return min(2 * batch_size, 64)


class Run:
    """The ranks of a run in this process: nothing is measured, so they have nothing to agree on.

    One model is trained, on the global batch.
    """

    def __init__(self, world_size: int, accumulation_steps: int = 1, **arguments: Any) -> None:
        self.model, self.parts = network(), accumulation_steps
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3)
        steps = EPOCHS * -(-SAMPLES // (GLOBAL * accumulation_steps))
        self.scheduler = OneCycleLR(self.optimizer, 1e-2, total_steps=steps)
        arguments = {"shuffle": True, "batch_size": GLOBAL // world_size, "num_workers": 0, **arguments}
        if arguments["shuffle"]:
            arguments["generator"] = torch.Generator().manual_seed(5)
        self.loaders = []
        for rank in range(world_size):
            model, optimizer, scheduler = self.model, self.optimizer, self.scheduler
            if rank:  # steps beside the first, as a rank would at the same time
                model, scheduler = network(), None
                optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
            if "generator" in arguments:
                arguments["generator"] = torch.Generator().manual_seed(5)
            self.loaders.append(AdaptiveDataLoader(
                Numbered(), model=model, optimizer=optimizer, scheduler=scheduler, epochs=EPOCHS, overhead=0,
                step_time=(1, 0), target=doubling_to_64, decide_every=0.2, rank=rank, world_size=world_size,
                accumulation_steps=accumulation_steps, **arguments,
            ))  # fmt: skip
        self.steps: list[tuple[int, list[int], float]] = []  # epoch, indices in the shared order, learning rate

    def train(self, epochs: range, stop: int | None = None) -> None:
        for epoch in epochs:
            for i, batches in enumerate(zip(*self.loaders, strict=True), 1):
                shares = [batch[2] for batch in batches]
                assert len(set(map(len, shares))) == 1, "each rank has equally many"
                indices = torch.stack(shares, 1).flatten()
                for loader, share in zip(self.loaders, shares, strict=True):
                    model = loader.training_run.model
                    rows = indices if model is self.model else share
                    (batch_loss(model, (X[rows], X[rows].sum(1, keepdim=True))) / self.parts).backward()
                if i % self.parts == 0:
                    self.steps.append((epoch, indices.tolist(), self.optimizer.param_groups[0]["lr"]))
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                    self.scheduler.step()
                else:
                    self.steps.append((epoch, indices.tolist(), -1.0))
                if len(self.steps) == stop:
                    self.state = self._saved()  # an iteration that is dropped ends its epoch
                    return

    def _saved(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        states = {name: part.state_dict() for name, part in parts.items()}
        file = io.BytesIO()
        torch.save({**states, "loader": self.loaders[0].state_dict()}, file)
        return torch.load(io.BytesIO(file.getvalue()))

    def load(self, state: dict[str, Any]) -> None:
        for name, part in (("model", self.model), ("optimizer", self.optimizer), ("scheduler", self.scheduler)):
            part.load_state_dict(state[name])
        for loader in self.loaders:
            loader.load_state_dict(state["loader"])


def stopped(before: int, after: int, **arguments: Any) -> tuple[Run, Run, Run]:
    """An unbroken run on `before` ranks, the same stopped, and its rest on `after` ranks."""
    whole, first, rest = Run(before, **arguments), Run(before, **arguments), Run(after, **arguments)
    whole.train(range(EPOCHS))
    first.train(range(EPOCHS), STOP)
    rest.load(first.state)
    rest.train(range(rest.loaders[0].training_run.controller.progress_tracker.epoch, EPOCHS))
    return whole, first, rest


CASES = [
    *((before, after, {}) for before, after in ((4, 2), (2, 4), (4, 1), (1, 4), (2, 2))),
    (4, 2, {"shuffle": False}), (1, 2, {"shuffle": False}), (4, 1, {"accumulation_steps": 2}),
    (2, 4, {"accumulation_steps": 2}), (4, 2, {"num_workers": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "arguments"), CASES)
def test_a_run_goes_on_as_the_unbroken_one(before, after, arguments):
    whole, first, rest = stopped(before, after, **arguments)
    assert 0 < len(first.steps) < len(whole.steps) and len({len(i) for _, i, _ in whole.steps}) > 2
    seen = [*first.steps, *rest.steps]
    for epoch in range(EPOCHS):
        indices = [index for at, batch, _ in seen if at == epoch for index in batch]
        # An epoch is padded by its first samples to what the ranks share equally.
        assert sorted(set(indices)) == list(range(SAMPLES)) and len(indices) - SAMPLES < max(before, after)
    in_epoch, again = ([step for step in steps if step[0] == first.steps[-1][0]] for steps in (whole.steps, seen))
    order, order_again = ([i for _, batch, _ in steps for i in batch][:SAMPLES] for steps in (in_epoch, again))
    assert order == order_again
    if not arguments.get("num_workers"):  # which fetch batches ahead, at the size of before
        same = len(again) - 2 if first.parts == 1 else STOP + 2  # a tail is padded and cut in another way
        assert again[:same] == in_epoch[:same]
    assert rest.optimizer.param_groups[0]["lr"] == pytest.approx(whole.optimizer.param_groups[0]["lr"], rel=1e-3)
    if not arguments:
        distance = (flat(rest.model) - flat(whole.model)).abs().max()
        assert distance < 0.02 < (flat(whole.model) - flat(network())).abs().max()


def test_with_drop_last_a_pass_is_cut_to_whole_first_batches():
    _, first, rest = stopped(2, 4, drop_last=True)
    indices = [index for epoch, batch, _ in (*first.steps, *rest.steps) if epoch == 0 for index in batch]
    assert len(indices) == len(set(indices)) == SAMPLES // GLOBAL * GLOBAL


def test_a_place_that_the_ranks_cannot_share_repeats_a_few_samples():
    first, rest = Run(2, batch_size=12), Run(8, batch_size=3)
    first.train(range(EPOCHS), 2)
    state = first.state
    assert state["loader"]["source"]["rest"]["cut"] % 8 == 0
    state["loader"]["source"]["rest"] |= {"cut": 46, "left": SAMPLES - 46}
    rest.load(state)
    rest.train(range(1))
    assert [i for _, batch, _ in rest.steps for i in batch][:2] == [i for _, b, _ in first.steps for i in b][40:42]
    assert sum(len(batch) for _, batch, _ in rest.steps) == 408 - 40


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ({"world_size": 2}, {"world_size": 4, "batch_size": 8},
         "world_size=2, this one 4: .* the 16 samples, in 1 batches a rank, .* give batch_size=4, accumulation_steps="),
        ({"world_size": 2}, {"world_size": 1, "batch_size": 8, "accumulation_steps": 2}, "give batch_size=16, accumul"),
        ({"world_size": 4}, {"world_size": 3, "batch_size": 5}, "go on with a number of processes that divides 16"),
    ],
)  # fmt: skip
def test_steps_of_another_size_are_refused(before, after, says):
    first, rest = Run(**before), Run(**after)
    first.train(range(1), 2)
    with pytest.raises(ValueError, match=says):
        rest.load(first.state)


def test_a_state_of_the_middle_of_a_step_is_refused():
    first, rest = Run(2, accumulation_steps=2), Run(4, accumulation_steps=2)
    first.train(range(1), 3)
    with pytest.raises(ValueError, match="middle of an optimizer step, whose gradients are gone: save after a step"):
        rest.load(first.state)


def test_an_order_that_cannot_be_drawn_again_is_refused_within_a_pass():
    class Odd(torch.utils.data.Sampler):
        def __len__(self):
            return SAMPLES

        def __iter__(self):
            return iter([*range(1, SAMPLES, 2), *range(0, SAMPLES, 2)])

    first, rest = Run(2, shuffle=False, sampler=Odd()), Run(4, shuffle=False, sampler=Odd())
    first.train(range(1), 3)
    with pytest.raises(ValueError, match=r"order cannot be drawn again.* save at an epoch's end"):
        rest.load(first.state)

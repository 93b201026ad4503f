"""What an adapter states of a library's loop, and asks the loader: in place of what is found out by itself."""

from __future__ import annotations

import gc
import math
from functools import partial
from itertools import islice

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, DistributedSampler, Sampler

from adaptbs.loader import AdaptedLoader, LoopFacts
from adaptbs.loader.call_interval import StatedInterval
from adaptbs.ranks import Ranks
from adaptbs.run import NoLookAhead
from adaptbs.run.look_ahead import OneAhead
from adaptbs.sampling import whole_order
from tests.integration.training import FORCED, Numbered, doubling, loss_of, network

ALL = 203


def plain() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))


def made(facts=None, model=None, **arguments):
    model = model or plain()
    optimizer = SGD(model.parameters(), 0.01)
    scheduler = LambdaLR(optimizer, partial(linear, num_training_steps=1000))
    arguments = {"epochs": 3, "target": doubling(), **FORCED} | arguments
    stock = DataLoader(Numbered(ALL), 8, shuffle=True)
    loader = AdaptedLoader(
        facts or LoopFacts(), stock, model=model, optimizer=optimizer, scheduler=scheduler, **arguments
    )
    return model, optimizer, scheduler, loader


def linear(step: int, num_training_steps: int) -> float:
    """As Hugging Face's schedules are made; it may be asked for any step."""
    return max(1 - step / num_training_steps, 0.0)


def larger(noise_scale, batch_size: int, progress: float) -> int:
    return 2 * batch_size


def step(model, optimizer, batch) -> None:
    loss_of(model, batch).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize(
    ("steps", "per_step", "expected"),
    [(1, 1, [0, 1, 2, 3, 4, 5, 6]), (2, 1, [0, 2, 4, 6, 8, 10, 12]), (1, 2, [0, 0, 1, 2, 2, 3, 4]),
     (4, 2, [0, 0, 4, 8, 8, 12, 16])],
)  # fmt: skip
def test_an_epochs_last_batches_make_an_optimizer_step_of_the_fixed_run_too(steps, per_step, expected):
    interval = StatedInterval(steps, per_step, epoch_steps=3)
    assert [interval.at(batches) for batches in range(7)] == expected


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("look_ahead", [None, NoLookAhead], ids=["found out", "stated"])
def test_a_stated_schedule_ends_where_that_of_the_fixed_run_does(steps, parts, look_ahead):
    """A library makes `steps` calls at each optimizer step, and one with what an epoch's end leaves of a step."""
    facts = LoopFacts(schedule_steps=steps, look_ahead=look_ahead)
    model, optimizer, scheduler, loader = made(facts, accumulation_steps=parts)
    sizes, places = [], []
    for _ in range(3):
        for i, batch in enumerate(loader, 1):
            sizes.append(len(batch[2]))
            loss_of(model, batch).backward()
            if i % parts == 0 or loader.batches_left == 0:
                optimizer.step()
                optimizer.zero_grad()
                for _ in range(steps):
                    scheduler.step()
        places.append(scheduler.last_epoch)
    fixed = math.ceil(math.ceil(ALL / 8) / parts) * steps
    assert len(set(sizes)) > 2 and max(sizes) >= 32
    assert places == [fixed, 2 * fixed, 3 * fixed]


def test_a_stated_schedule_that_is_stepped_once_an_epoch_makes_one_step():
    model, optimizer, scheduler, loader = made(LoopFacts(schedule_steps=2))
    for _ in range(3):
        for batch in loader:
            step(model, optimizer, batch)
        scheduler.step()
    assert scheduler.last_epoch == 3
    assert loader.batch_size > 8


@pytest.mark.parametrize("ends", ["close", "drop"])
@pytest.mark.parametrize("facts", [LoopFacts(schedule_steps=1), LoopFacts()], ids=["stated", "learnt"])
def test_a_scheduler_is_the_users_again_where_the_loader_is_at_its_end(facts, ends):
    """Its calls had made no steps any more, once the batch had grown."""
    model, optimizer, scheduler, loader = made(facts)
    for batch in loader:
        step(model, optimizer, batch)
        scheduler.step()
    kind, before = type(scheduler).__mro__[1], scheduler.last_epoch
    assert loader.batch_size > 8 and before
    if ends == "close":
        loader.close()
    del loader
    gc.collect()
    for _ in range(3):
        scheduler.step()
    assert type(scheduler) is kind and scheduler.last_epoch == before + 3


def test_batches_left_counts_down_to_the_last_batch_and_is_the_next_epochs_between():
    model, optimizer, _, loader = made()
    assert loader.batches_left == len(loader) == -(-ALL // 8)
    for _ in range(3):
        left = []
        for delivered, batch in enumerate(loader, 1):
            left.append(loader.batches_left)
            assert len(loader) == delivered + left[-1]
            step(model, optimizer, batch)
        assert left[-1] == 0 and 0 not in left[:-1]
        assert loader.batches_left == len(loader)


def test_a_batch_that_is_fetched_ahead_is_left():
    model, optimizer, _, loader = made(LoopFacts(look_ahead=OneAhead), overhead=0)
    batches = iter(loader)
    now, following = next(batches), next(batches)
    assert loader.batches_left == len(loader) - 1
    step(model, optimizer, now)
    step(model, optimizer, following)


def test_a_loop_that_is_stated_to_fetch_ahead_is_scaled_by_the_batch_that_it_works_on():
    model, optimizer, _, loader = made(LoopFacts(look_ahead=OneAhead), lr_scaling="linear", epochs=2)
    used, sizes = [], []
    optimizer.register_step_pre_hook(lambda *_: used.append(optimizer.param_groups[0]["lr"] / 0.01))
    for _ in range(2):
        before = None
        for batch in loader:
            if before is not None:
                sizes.append(len(before[2]))
                step(model, optimizer, before)
            before = batch
        sizes.append(len(before[2]))
        step(model, optimizer, before)
    whole = [(size, factor) for size, factor in zip(sizes, used, strict=True) if size in (8, 16, 32, 64)]
    assert max(sizes) >= 32
    assert [factor for _, factor in whole] == pytest.approx([size / 8 for size, _ in whole], rel=0.01)


def test_all_batches_of_a_step_may_be_fetched_before_its_first_backward_pass_if_that_is_stated():
    """As Hugging Face's Trainer does; by itself the first step would not tell whether the loop fetches ahead."""
    model, optimizer, _, loader = made(
        LoopFacts(look_ahead=NoLookAhead), accumulation_steps=4, overhead=0.9, decide_every=0.1,
        step_time=(1.0, 0.001), target=larger,
    )  # fmt: skip
    for _ in range(3):
        batches = iter(loader)
        while together := list(islice(batches, 4)):
            for batch in together:
                loss_of(model, batch).backward()
            assert loader.training_run.controller.holds.reason is None
            optimizer.step()
            optimizer.zero_grad()
    assert loader.noise_scale.measurements >= 2
    assert loader.batch_size > 8


def test_a_closure_is_measured_where_the_adapter_says_that_gradients_are_ready():
    """An optimizer's hooks run before the backward pass of its closure."""
    facts = LoopFacts(look_ahead=NoLookAhead, says_when_ready=True)
    model, optimizer, _, loader = made(facts, overhead=0.9, decide_every=0.1, step_time=(1.0, 0.001), target=larger)
    for _ in range(3):
        for batch in loader:

            def closure(batch=batch):
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()
                loader.gradients_are_ready()
                return loss

            optimizer.step(closure)
    measured = [record for record in loader.history if record["event"] == "measurement"]
    assert len(measured) >= 4
    assert all(record["doubt"] is None and record["grad_sq"] is not None for record in measured)


def test_a_run_may_be_planned_to_end_within_an_epoch():
    *_, loader = made(LoopFacts(planned_epochs=2.5))
    assert loader.training_run.controller.progress_tracker.planned == round(2.5 * ALL)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_whole_order_of_a_distributed_sampler_is_dealt_out_as_it_deals_it(ranks, shuffle, drop_last):
    shares = [
        DistributedSampler(range(50), ranks, rank, shuffle=shuffle, seed=5, drop_last=drop_last)
        for rank in range(ranks)
    ]  # fmt: skip
    order = whole_order(shares[1])
    for epoch in range(2):
        for share in [shares[0], *shares[2:], order]:
            share.set_epoch(epoch)
        whole = list(order)
        assert len(whole) == len(order)
        assert [whole[rank::ranks] for rank in range(ranks)] == [list(share) for share in shares]
    assert [shares[1].rank, shares[1].num_replicas] == [1, ranks], "it is left as it was"


def test_other_samplers_are_taken_over_as_they_are():
    sampler = Sampler()
    assert whole_order(sampler) is sampler


@pytest.mark.parametrize("in_runs", [False, True])
def test_ranks_share_a_batch(in_runs):
    shares = [Ranks(rank, 3, in_runs=in_runs).mine(list(range(6))) for rank in range(3)]
    assert shares == ([[0, 1], [2, 3], [4, 5]] if in_runs else [[0, 3], [1, 4], [2, 5]])


def test_a_model_with_batch_norm_is_measured_in_a_pass_of_its_own_all_the_same():
    model, optimizer, _, loader = made(
        LoopFacts(look_ahead=NoLookAhead, says_when_ready=True), network(), batch_loss=loss_of, overhead=0.9,
        decide_every=0.1, step_time=(1.0, 0.001),
    )  # fmt: skip
    for batch in loader:
        step(model, optimizer, batch)
        loader.gradients_are_ready()
    assert loader.noise_scale is not None

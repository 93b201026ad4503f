"""Loops of which it is not known which batch a step belongs to: the batch is held, and that is said once."""

from __future__ import annotations

import copy
import itertools
import queue
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn.functional import mse_loss
from torch.optim import SGD

from tests.integration.training import FORCED, Numbered, adaptive, doubling, loss_of, network, stock

N, BATCH = 512, 16


# Ways to take batches.


def in_a_thread(batches, depth: int = 2):
    """As prefetch_generator's BackgroundGenerator, MONAI's ThreadBuffer and many others do."""
    ready: queue.Queue = queue.Queue(depth)

    def fill() -> None:
        for batch in batches:
            ready.put(batch)
        ready.put(None)

    threading.Thread(target=fill, daemon=True).start()
    while (batch := ready.get()) is not None:
        yield batch


def in_a_pool(batches):
    """The next batch is fetched by another thread while this one is trained on."""
    batches = iter(batches)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def several_ahead(batches, depth: int = 3):
    """As flax' prefetch_to_device and DALI-like pipelines do."""
    waiting: deque = deque()
    for batch in batches:
        waiting.append(batch)
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting


def skipping(batches, n: int = 5):
    """As a loop that is resumed by passing over what it has seen."""
    return itertools.islice(batches, n, None)


def repeated(batches):
    """Each batch twice, as data echoing does; the second time comes after all of them."""
    batches = list(batches)
    return batches + batches


class Run:
    def __init__(self, seed: int = 0, **arguments) -> None:
        self.model = network(seed)
        self.optimizer = SGD(self.model.parameters(), 0.01)
        arguments = {"target": doubling(4), "epochs": 3, "lr_scaling": "linear", **FORCED} | arguments
        self.loader = adaptive(Numbered(N), self.model, self.optimizer, BATCH, **arguments)
        self.used: list[tuple[int, float]] = []  # rows and learning rate of each step
        self.rows = 0
        self.optimizer.register_step_pre_hook(
            lambda *_: self.used.append((self.rows, self.optimizer.param_groups[0]["lr"] / 0.01))
        )

    def train(self, batches) -> None:
        for batch in batches:
            self.step(batch)

    def step(self, batch) -> None:
        self.rows = len(batch[2])
        self.optimizer.zero_grad()
        loss_of(self.model, batch).backward()
        self.optimizer.step()


def reason(run: Run) -> str:
    return run.loader.history.records[-1]["reason"]


HELD = "not known which batch a step belongs to"


@pytest.mark.parametrize("way", [in_a_thread, in_a_pool], ids=lambda way: way.__name__)
def test_a_loop_that_fetches_in_another_thread_is_held_from_the_beginning(way, caplog):
    run = Run()
    for _ in range(3):
        run.train(way(run.loader))
    assert run.loader.batch_size == BATCH and {rows for rows, _ in run.used} == {BATCH}
    assert {factor for _, factor in run.used} == {1.0}
    assert caplog.text.count("in another") == 1 and len(caplog.records) == 1
    assert reason(run) == HELD == run.loader.history.records[-1]["doubt"]


@pytest.mark.parametrize("way", [in_a_thread, in_a_pool], ids=lambda way: way.__name__)
def test_nothing_is_measured_in_another_thread(way):
    """Weights, buffers and random numbers are those of a loop that measures nothing."""
    ends = []
    for overhead in (0.5, 0.0):
        run = Run(overhead=overhead, step_time=(1.0, 0.0), max_batch_size=BATCH, target="goodput")
        torch.manual_seed(1)
        for _ in range(2):
            run.train(way(run.loader))
        ends.append(torch.cat([value.flatten() for value in run.model.state_dict().values()]))
        assert run.loader.noise_scale is None
    assert torch.equal(*ends)


def test_a_loop_that_runs_in_a_thread_as_a_whole_measures_and_grows(caplog):
    """As in a notebook's or a server's worker."""
    run = Run(overhead=0.5, step_time=(1.0, 0.0), target=doubling(4))

    def all_of_it() -> None:
        for _ in range(3):
            run.train(run.loader)

    thread = threading.Thread(target=all_of_it)
    thread.start()
    thread.join()
    assert run.loader.noise_scale is not None and run.loader.batch_size > BATCH
    assert not caplog.text


@pytest.mark.parametrize("way", [several_ahead, skipping], ids=lambda way: way.__name__)
def test_a_loop_that_has_fetched_several_batches_before_it_trains_is_held(way, caplog):
    run = Run(target=lambda noise, size, progress: BATCH if progress < 0.1 else 64)
    for _ in range(3):
        run.train(way(run.loader))
    assert run.loader.batch_size == BATCH
    assert {factor for _, factor in run.used} == {1.0}
    assert caplog.text.count("had been fetched") == 1 and len(caplog.records) == 1
    assert reason(run) == HELD


def test_one_that_passes_batches_over_in_its_first_epoch_alone_grows_in_the_others(caplog):
    """As after a resume that skips what was seen."""
    run = Run(target=lambda noise, size, progress: BATCH if progress < 0.1 else 64)
    run.train(skipping(run.loader))
    assert run.loader.batch_size == BATCH
    run.train(run.loader)
    assert run.loader.batch_size == 64
    assert len(caplog.records) == 1


def test_a_step_made_of_the_sum_of_several_batches_losses_is_none_of_them(caplog):
    run = Run(accumulation_steps=4)
    for _ in range(3):
        loss = 0
        for i, batch in enumerate(run.loader):
            loss = loss + loss_of(run.model, batch) / 4
            if i % 4 == 3:
                run.rows = 4 * len(batch[2])
                run.optimizer.zero_grad()
                loss.backward()
                run.optimizer.step()
                loss = 0
    assert run.loader.global_batch_size > 4 * BATCH and not caplog.text


def cycle(loader, steps: int):
    return itertools.islice(itertools.cycle(loader), steps)


def test_batches_handed_out_again_are_stepped_at_their_own_learning_rate(caplog):
    """itertools.cycle keeps the first epoch's batches."""
    run = Run()
    run.train(cycle(run.loader, 150))
    assert len({rows for rows, _ in run.used}) > 2
    wrong = [(rows, factor) for rows, factor in run.used if factor != pytest.approx(rows / BATCH)]
    assert len(wrong) <= 4, "a short last one, and those until that is noticed"
    assert caplog.text.count("itertools.cycle") == 1 and len(caplog.records) == 1
    size = run.loader.batch_size
    run.train(cycle(run.loader, 150))
    assert run.loader.batch_size == size and len(caplog.records) == 1


@pytest.mark.parametrize("way", [list, repeated], ids=["list", "repeated"])
def test_batches_that_are_collected_first(way, caplog):
    run = Run()
    for _ in range(2):
        run.train(way(run.loader))
    assert len(caplog.records) == 1 and "list(loader)" in caplog.text
    wrong = [(rows, factor) for rows, factor in run.used if factor != pytest.approx(rows / BATCH)]
    assert len(wrong) <= 6
    assert reason(run) == HELD


def test_steps_on_other_data_between_two_epochs(caplog):
    run, other = Run(), list(stock(Numbered(64)))
    run.train(run.loader)
    grown = run.loader.batch_size
    run.train(other)
    run.train(run.loader)
    assert grown > BATCH and run.loader.batch_size == grown
    assert caplog.text.count("loop over other data") == 1 and len(caplog.records) == 1


@pytest.mark.parametrize("steps", [1, 2])
def test_the_last_steps_of_an_epoch_may_come_after_it(steps, caplog):
    """What is left of an accumulated step; and the batch that was fetched ahead."""
    run = Run()
    for _ in range(3):
        batches = iter(run.loader)
        this = next(batches)
        for following in batches:
            run.step(this)
            this = following
        for _ in range(steps):
            run.step(this)
    assert run.loader.batch_size > BATCH and not caplog.text


@pytest.mark.parametrize("times", [2, 5])
def test_several_steps_a_batch_are_no_doubt(times, caplog):
    run = Run()
    for _ in range(2):
        for batch in run.loader:
            for _ in range(times):
                run.step(batch)
    assert run.loader.batch_size > BATCH and not caplog.text


def test_steps_before_the_first_batch_are_no_doubt(caplog):
    """As one that makes the optimizer's state."""
    run = Run()
    run.train(itertools.islice(stock(Numbered(64)), 3))
    run.train(run.loader)
    assert run.loader.batch_size > BATCH and not caplog.text


class Sharp(SGD):
    """As SAM is often written: another optimizer takes the step."""

    def __init__(self, parameters, lr) -> None:
        super().__init__(parameters, lr)
        self.base_optimizer = SGD(self.param_groups, lr)


def test_an_optimizer_that_is_never_stepped_holds_the_batch_before_it_grows(caplog):
    model = network()
    optimizer = Sharp(model.parameters(), 0.01)
    target = lambda noise, size, progress: BATCH if progress < 0.3 else 64  # noqa: E731
    loader = adaptive(Numbered(N), model, optimizer, BATCH, **{**FORCED, "target": target})
    for _ in range(2):
        for batch in loader:
            loss_of(model, batch).backward()
            optimizer.base_optimizer.step()
    assert loader.batch_size == BATCH
    assert caplog.text.count("is never called") == 1 and len(caplog.records) == 1


def test_a_closure_is_of_the_batch_that_was_delivered(caplog):
    run = Run()
    for _ in range(2):
        for batch in run.loader:
            run.rows = len(batch[2])

            def closure(batch=batch):
                run.optimizer.zero_grad()
                loss = mse_loss(run.model(batch[0]), batch[1])
                loss.backward()
                return loss

            run.optimizer.step(closure)
    assert run.loader.batch_size > BATCH and not caplog.text


def test_a_model_that_is_watched_can_be_copied():
    run = Run()
    run.train(list(run.loader))
    assert run.model._forward_pre_hooks
    copy.deepcopy(run.model)
    run.loader.close()
    assert not run.model._forward_pre_hooks

"""Epochs that are shares of a run's progress: n asked are n shown, and each pass sees each sample once."""

from __future__ import annotations

import io
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, nn
from torch.optim import SGD

from adaptbs import AdaptiveDataLoader
from tests.invariants.test_orders import ORDERS, Named, through_a_file
from tests.unit.sampling.test_draw import KINDS, Unknown


class Drawn:
    """A target that asks for the next of these sizes, from its place in them on."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes, self.at = sizes, 0

    def __call__(self, noise_scale, batch_size: int, progress: float) -> int:
        self.at += 1
        return self.sizes[self.at % len(self.sizes)]


def made(n: int, start: int, epochs: int, target, kind="random", seed: int = 1, own: bool = False, **arguments):
    """A loader whose epochs are shares, its model and its optimizer."""
    torch.manual_seed(seed)
    generator = Generator().manual_seed(seed) if own else None
    sampler = Unknown(n) if kind == "unknown" else KINDS[kind](n, generator)
    model = nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), 1e-6)
    arguments = {"max_batch_size": max(n // 2, start), "decide_every": 0.03} | arguments
    loader = AdaptiveDataLoader(
        Named(torch.arange(n)), start, sampler=sampler, generator=generator, model=model, optimizer=optimizer,
        epochs=epochs, overhead=0.3, step_time=(1.0, 0.0), target=target, **arguments,
    )  # fmt: skip
    return loader, model, optimizer


def epochs_of(loader, model, optimizer, epochs: int, accumulated: int = 1):
    """Number of the epoch, place in it and indices of each batch; each is trained on."""
    for epoch in loader.epochs(epochs):
        for i, (batch,) in enumerate(loader):
            (model(batch[:, None].float()) - batch[:, None]).square().mean().backward()
            if (i + 1) % accumulated == 0:
                optimizer.step()
                optimizer.zero_grad()
            yield epoch, i, batch.tolist()


@given(
    n=st.integers(8, 150), start=st.integers(1, 16), epochs=st.integers(1, 5), accumulated=st.sampled_from([1, 1, 3]),
    sizes=st.lists(st.integers(1, 64), min_size=1, max_size=8), drop_last=st.booleans(), max_extra=st.floats(0, 2),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_epochs_asked_are_epochs_shown_and_a_pass_sees_each_sample_once(
    n, start, epochs, accumulated, sizes, drop_last, max_extra
):
    start = min(start, max(n // (2 * accumulated), 1))
    loader, model, optimizer = made(
        n, start, epochs, Drawn([size * accumulated for size in sizes]), drop_last=drop_last, max_extra=max_extra,
        accumulation_steps=accumulated, max_batch_size=max(n // (2 * accumulated), start),
    )  # fmt: skip
    tracker, said = loader.training_run.tracker, []
    seen, ends = [], []
    for epoch, i, batch in epochs_of(loader, model, optimizer, epochs, accumulated):
        assert i == 0 or not said[-1], "the batch before has said that it is the epoch's last"
        assert i > 0 or not said or said[-1], "the epoch's last batch has not said so"
        said.append(i + 1 == len(loader))
        assert tracker.current.num_samples == len(batch)
        seen.append((epoch, batch))
        ends.append(tracker.current.ends_step)
    assert said[-1]
    assert list(dict(seen)) == list(range(epochs))
    pass_samples = n - n % start if drop_last else n
    flat = list(itertools.chain.from_iterable(batch for _, batch in seen))
    for begin in range(0, len(flat), pass_samples):
        one_pass = flat[begin : begin + pass_samples]
        assert len(one_pass) == len(set(one_pass)), "a sample came twice in a pass"
    assert loader.progress == pytest.approx(1)
    assert loader.training_run.controller.progress_tracker.samples == len(flat)


@given(
    kind=st.sampled_from(ORDERS), n=st.integers(32, 90), own=st.booleans(), drop_last=st.booleans(),
    start=st.integers(1, 5), accumulated=st.sampled_from([1, 1, 2]), stops=st.lists(st.integers(0, 12), max_size=4),
    between=st.booleans(),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_saved_in_mid_epoch_and_mid_pass_and_gone_on_with_is_never_stopped(
    kind, n, own, drop_last, start, accumulated, stops, between
):
    """Also between two epochs, where a pass is left over."""

    def begin(seed: int):
        return made(
            n, start, 4, lambda _, size, __: size + 3 * accumulated, kind, seed, own, drop_last=drop_last,
            accumulation_steps=accumulated,
        )  # fmt: skip

    def batches(parts):
        for _ in parts[0].epochs(4):
            yield from within(parts)
            if between:
                yield "validated"

    def within(parts):
        loader, model, optimizer = parts
        for (batch,) in loader:
            (model(batch[:, None].float()) - batch[:, None]).square().mean().backward()
            if loader.training_run.tracker.current.ends_step:
                optimizer.step()
                optimizer.zero_grad()
            yield batch.tolist()

    unbroken = list(batches(begin(1)))
    parts = begin(1)
    underway, seen = batches(parts), []
    for resumed, stop in enumerate(stops):
        seen += itertools.islice(underway, stop + 1)
        while not parts[0].training_run.tracker.current.ends_step:  # a step is measured as a whole
            seen += itertools.islice(underway, 1)
        if len(seen) >= len(unbroken):
            break
        states = through_a_file((*(part.state_dict() for part in parts), torch.get_rng_state()))
        if resumed % 2:
            continue  # it goes on itself, after a state has been saved
        parts = begin(2 + resumed)
        for part, state in zip(parts, states[:-1], strict=True):
            part.load_state_dict(state)
        torch.set_rng_state(states[-1])
        underway = batches(parts)
    assert seen + list(underway) == unbroken


@pytest.mark.parametrize("how", [{}, {"persistent_workers": True}, {"prefetch_factor": 4}])
def test_what_workers_have_fetched_ahead_is_neither_lost_nor_shown_twice(how):
    parts = made(120, 4, 4, lambda *_: 20, num_workers=2, **how)
    plain = made(120, 4, 4, lambda *_: 20)
    runs = []
    for each in (parts, plain):
        torch.manual_seed(5)
        runs.append([])
        lasts = []
        for epoch, i, batch in epochs_of(*each, 4):
            runs[-1].append((epoch, batch))
            lasts.append((i, i + 1 == len(each[0])))
        assert [is_last for _, is_last in lasts] == [i == 0 for i, _ in [*lasts[1:], (0, True)]]
        each[0].close()
    for run in runs:
        flat = list(itertools.chain.from_iterable(batch for _, batch in run))
        assert list(dict(run)) == [0, 1, 2, 3] and len(flat) > 4 * 120
        for begin in range(0, len(flat), 120):
            one_pass = flat[begin : begin + 120]
            assert len(one_pass) == len(set(one_pass))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 7, 14, 23])
def test_with_workers_saved_anywhere_is_never_stopped(workers, stop):
    def begin(seed):
        return made(120, 4, 3, lambda *_: 12, seed=seed, num_workers=workers)

    unbroken = [batch for *_, batch in epochs_of(*begin(1), 3)]
    parts = begin(1)
    underway = epochs_of(*parts, 3)
    seen = [batch for *_, batch in itertools.islice(underway, stop)]
    file = io.BytesIO()
    torch.save([*(part.state_dict() for part in parts), torch.get_rng_state()], file)
    file.seek(0)
    *states, random = torch.load(file)
    parts = begin(2)
    for part, state in zip(parts, states, strict=True):
        part.load_state_dict(state)
    torch.set_rng_state(random)
    assert seen + [batch for *_, batch in epochs_of(*parts, 3)] == unbroken

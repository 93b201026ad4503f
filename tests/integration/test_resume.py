"""A run that is stopped after any batch, and goes on in another process, is the run that never stopped."""

from __future__ import annotations

import io
import signal
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset, WeightedRandomSampler, get_worker_info

from tests.integration import stoppable
from tests.integration.processes import Forked
from tests.integration.training import FORCED, Numbered, adaptive, doubling, loss_of, network

FEW = 800  # samples of runs that are resumed many times


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


def flat(batches: list[list[int]]) -> list[int]:
    return [i for batch in batches for i in batch]


def same(ours, unbroken) -> None:
    weights, seen, history = ours
    assert seen == unbroken[1]
    assert history == unbroken[2]
    assert all(torch.equal(weights[name], value) for name, value in unbroken[0].items())


@cache
def never_stopped(workers: int):
    return stoppable.train(None, workers)


@pytest.mark.parametrize(("workers", "kills"), [(0, 50), (2, 2)])
def test_killed_over_and_over_it_ends_with_the_weights_of_the_run_that_was_not(tmp_path, workers, kills):
    unbroken = never_stopped(workers)
    assert max(map(len, unbroken[1])) > stoppable.START, "the batch should grow meanwhile"
    path, result = tmp_path / "state.pt", tmp_path / "result.pt"

    def started(doomed: int | None) -> int | None:
        return Forked(tmp_path, stoppable.write_result, path, result, workers, doomed).wait(60)[0]

    killed = 0
    for i in range(kills):
        killed += started(i) == -signal.SIGKILL
    assert killed == kills
    if not result.exists():
        assert started(None) == 0
    same(torch.load(result), unbroken)


@pytest.mark.parametrize("workers", [0, 2])
def test_saved_after_each_batch_and_resumed_each_time(workers):
    """Also from inside a growth that is still in flight, which with workers is several batches long."""
    unbroken = stoppable.train(None, workers, samples=FEW)
    sizes = [len(batch) for batch in unbroken[1]]
    changes = [i for i in range(1, len(sizes)) if sizes[i] != sizes[i - 1]]
    assert sizes[changes[1]] > sizes[changes[0]] > stoppable.START, "the batch should grow twice meanwhile"
    stops = sorted({j for i in [*changes[:2], len(sizes) - 2] for j in range(i - 4, i + 2)} | {0})
    stops = stops[:: 4 if workers else 1]  # (workers take their time to start)
    run = model, optimizer, scheduler, loader = stoppable.parts(workers, stoppable.EPOCHS, samples=FEW)
    saved = []
    for _ in loader.epochs(stoppable.EPOCHS):
        for i, batch in enumerate(loader, len(saved)):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            scheduler.step()
            states = [*(part.state_dict() for part in run), torch.get_rng_state()]
            saved.append(through_a_file(states) if i in stops else None)
    for stop in stops:
        again = stoppable.parts(workers, None, seed=99, samples=FEW)  # (its length is known from the scheduler)
        for part, state in zip(again, saved[stop], strict=False):
            part.load_state_dict(state)
        torch.set_rng_state(saved[stop][-1])
        seen = unbroken[1][: stop + 1]
        model, optimizer, scheduler, loader = again
        for _ in loader.epochs(stoppable.EPOCHS):
            for batch in loader:
                seen.append(batch[2].tolist())
                optimizer.zero_grad()
                loss_of(model, batch).backward()
                optimizer.step()
                scheduler.step()
        same(stoppable.outcome(model, seen, loader), unbroken)


def trained_on(model, optimizer, loader, seen: list[list[int]]):
    """The batches of an epoch, once each has been trained on and its indices added to `seen`."""
    for batch in loader:
        seen.append(batch[2].tolist())
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield batch


@pytest.mark.parametrize("stop", [1, 2, 3, 20, 41])  # batches; the first is measured, as are many after it
def test_a_run_that_is_measured_in_its_steps_goes_on_too(stop):
    def parts():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        measured = {"overhead": 0.3, "step_time": (4e-3, 1e-6), "max_batch_size": 32}
        return model, optimizer, adaptive(Numbered(600), model, optimizer, 8, **measured)

    def go_on(run, seen):
        """To the end; what the whole run has come to, and what was saved on the way."""
        (model, optimizer, loader), saved = run, None
        for _ in loader.epochs(2):
            for _ in trained_on(model, optimizer, loader, seen):
                if len(seen) == stop:
                    saved = through_a_file([*(part.state_dict() for part in run), torch.get_rng_state()])
        return stoppable.outcome(model, seen, loader), saved

    unbroken, saved = go_on(parts(), [])
    assert unbroken[2]["source"].count("in step") > 20
    again = parts()
    for part, state in zip(again, saved, strict=False):
        part.load_state_dict(state)
    torch.set_rng_state(saved[-1])
    same(go_on(again, unbroken[1][:stop])[0], unbroken)


@pytest.mark.parametrize("order", ["generator", "weighted", "strings"])
def test_the_order_goes_on_whatever_drew_it(order):
    """The next epoch's too, where the loader or the sampler has a generator of its own."""

    class Named(Numbered):
        def __getitem__(self, i):
            return super().__getitem__(int(i))

    class Names:
        def __len__(self):
            return 100

        def __iter__(self):
            return iter(map(str, range(99, -1, -1)))

    def loader_of(seed: int):
        generator = torch.Generator().manual_seed(seed)
        model = network()
        how = {
            "generator": {"generator": generator},
            "weighted": {
                "sampler": WeightedRandomSampler(torch.arange(100.0), 100, generator=generator), "shuffle": None
            },
            "strings": {"sampler": Names(), "shuffle": None},
        }[order]  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        return adaptive(Named(100), model, optimizer, 8, target=doubling(), **FORCED, **how), model

    def epochs(loader, model, stop: int | None = None):
        seen = []
        for batch in loader:
            seen.append(batch[2].tolist())
            loss_of(model, batch).backward()
            if len(seen) == stop:
                return seen, through_a_file(loader.state_dict())
        return seen, None

    loader, model = loader_of(0)
    first, second = epochs(loader, model)[0], epochs(loader, model)[0]
    stopped, state = epochs(*loader_of(0), stop=3)
    resumed, model = loader_of(1)
    resumed.load_state_dict(state)
    assert flat(stopped + epochs(resumed, model)[0]) == flat(first)
    assert flat(epochs(resumed, model)[0]) == flat(second)


class Stream(IterableDataset):
    def __init__(self, n: int) -> None:
        self.data = Numbered(n)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        return (self.data[i] for i in range(first, len(self.data), step))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_read_again_up_to_where_it_was(workers):
    def loader_of():
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        loader = adaptive(
            Stream(200), model, optimizer, 8, shuffle=None, num_workers=workers, target=doubling(), **FORCED
        )
        return loader, model

    def rest(loader, model, stop: int | None = None):
        seen = []
        for batch in loader:
            loss_of(model, batch).backward()
            seen.append(batch[2].tolist())
            if len(seen) == stop:
                break
        return seen, through_a_file(loader.state_dict())

    loader, model = loader_of()
    whole = []
    states = []
    for batch in loader:
        loss_of(model, batch).backward()
        whole.append(batch[2].tolist())
        states.append(through_a_file(loader.state_dict()))
    assert sorted(flat(whole)) == list(range(200))
    assert max(map(len, whole)) > 16
    for stop in (0, 3, len(whole) // 2, len(whole) - 2):
        resumed, model = loader_of()
        resumed.load_state_dict(states[stop])
        seen, _ = rest(resumed, model)
        assert flat(whole[: stop + 1] + seen) == flat(whole) or workers
        assert sorted(flat(whole[: stop + 1] + seen)) == list(range(200))


class Positioned(Stream):
    """Keeps its own place, as a datasets.IterableDataset does; `late`: looks at it at the first sample, not at iter."""

    def __init__(self, n: int, late: bool = False) -> None:
        super().__init__(n)
        self.next, self.late, self.read, self.state = 0, late, 0, {}

    def __iter__(self):
        return self._read(None if self.late else self._begin())

    def _begin(self) -> int:
        self.state, begin = {}, self.state.get("next", 0)
        return begin

    def _read(self, begin: int | None):
        for i in range(self._begin() if begin is None else begin, len(self.data)):
            self.next, self.read = i + 1, self.read + 1
            yield self.data[i]
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.state = state


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("n", [60, 77])
def test_a_stream_that_knows_its_place_is_not_read_again(n, ahead, parts, late):
    def loader_of():
        model, data = network().eval(), Positioned(n, late)  # the last batch may be of one sample
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        how = {**FORCED, "target": lambda _, size, __: size + parts, "accumulation_steps": parts}
        return adaptive(data, model, optimizer, 8, shuffle=None, **how), model, data

    def trained(loader, model):
        """Indices of each batch, with the state after it; a loop that looks ahead fetches one more before it trains."""
        batches, held = iter(loader), None
        while True:
            batch = next(batches, None)
            now, held = (held, batch) if ahead else (batch, None)
            if now is not None:
                loss_of(model, now).backward()
                yield now[2].tolist(), through_a_file(loader.state_dict())
            if batch is None:
                return

    loader, model, _ = loader_of()
    whole = list(trained(loader, model))
    assert flat([batch for batch, _ in whole]) == list(range(n)) and max(len(batch) for batch, _ in whole) > 8
    for at, (_, state) in enumerate(whole[:-1]):
        resumed, model, data = loader_of()
        resumed.load_state_dict(state)
        assert str(resumed.state_dict()["source"]) == str(state["source"])
        rest = list(trained(resumed, model))
        assert [batch for batch, _ in rest] == [batch for batch, _ in whole[at + 1 :]]
        delivered = sum(len(batch) for batch, _ in rest)
        assert data.read == delivered or (ahead and data.read >= delivered)
        if at in (0, len(whole) - 2):
            assert flat([batch for batch, _ in trained(resumed, model)]) == list(range(n))


def test_a_stream_that_was_read_here_goes_on_here():
    def loader_of(**how):
        model = network()
        return adaptive(Positioned(64), model, torch.optim.SGD(model.parameters(), 0.01), 8, shuffle=None, **how), model

    loader, model = loader_of()
    loss_of(model, next(batches := iter(loader))).backward()
    next(batches)
    state = loader.state_dict()
    assert state["source"]["rest"]["dataset"] == {"next": 16}
    resumed, _ = loader_of(num_workers=2)
    with pytest.raises(ValueError, match="num_workers=0"):
        resumed.load_state_dict(state)


def test_the_state_of_a_stream_grows_with_changes_of_the_size_only():
    model = network()
    loader = adaptive(Stream(4000), model, torch.optim.SGD(model.parameters(), 0.01), 8, shuffle=None, overhead=0,
                      max_batch_size=8)  # fmt: skip
    for i, batch in enumerate(loader):
        loss_of(model, batch).backward()
        if i == 300:
            assert loader.state_dict()["source"]["rest"]["asked"] == [[8, 301]]
            return


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loaded_state_can_be_saved_again_before_the_first_batch(workers):
    def loader_of():
        model = network()
        return adaptive(
            Numbered(200), model, torch.optim.SGD(model.parameters(), 0.01), 8, num_workers=workers,
            target=doubling(), **FORCED,
        ), model  # fmt: skip

    loader, model = loader_of()
    seen = []
    for batch in loader:
        loss_of(model, batch).backward()
        seen += batch[2].tolist()
        if len(seen) > 80:
            break_at = loader.state_dict()
            break
    state = through_a_file(break_at)
    for begun in (False, True):
        resumed, model = loader_of()
        resumed.load_state_dict(state)
        if begun:
            iter(resumed)  # no batch of it has been asked for
        again = resumed.state_dict()
        assert again["tracker"] == state["tracker"]
        assert str(again["source"]["rest"]) == str(state["source"]["rest"])
    last, model = loader_of()
    last.load_state_dict(again)
    for batch in last:
        loss_of(model, batch).backward()
        seen += batch[2].tolist()
    assert sorted(seen) == list(range(200))


def test_a_state_of_another_version_or_run_is_refused_and_changes_nothing():
    def loader_of(n: int = 100, **arguments):
        model = network()
        return adaptive(Numbered(n), model, torch.optim.SGD(model.parameters(), 0.01), 8, **arguments)

    state = loader_of().state_dict()
    for loader, changed, words in (
        (loader_of(), {"version": 0}, "of version 0, this adaptbs reads 6: finish the run"),
        (loader_of(200), {}, "epoch_samples=100, this one 200"),
        (loader_of(accumulation_steps=2), {}, "start_batch_size=8, this one 16"),
    ):
        before = loader.state_dict()
        with pytest.raises(ValueError, match=words):
            loader.load_state_dict(state | changed)
        assert str(loader.state_dict()) == str(before)


def test_what_epochs_was_told_is_known_again():
    def loader_of():
        model = network()
        return adaptive(Numbered(64), model, torch.optim.SGD(model.parameters(), 0.01), 8, epochs=None, overhead=0)

    loader, resumed = loader_of(), loader_of()
    for epoch in loader.epochs(3):
        for _ in loader:
            if epoch == 1:
                break
        if epoch == 1:
            break
    state = through_a_file(loader.state_dict())
    resumed.load_state_dict(state)
    assert [sum(len(batch[2]) for batch in resumed) for _ in resumed.epochs(3)][-1] == 64
    with pytest.raises(ValueError, match="the run has 3 epochs"):
        resumed.epochs(4)


@pytest.mark.parametrize("overhead", [0.02, 0.3])
def test_to_save_a_state_changes_nothing_of_the_run_that_goes_on(overhead):
    def outcome(saves: bool):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        measured = {"overhead": overhead, "step_time": (4e-3, 1e-6), "max_batch_size": 32}
        loader, seen = adaptive(Numbered(600), model, optimizer, 8, **measured), []
        for _ in loader.epochs(2):
            for _ in trained_on(model, optimizer, loader, seen):
                if saves:
                    loader.state_dict()
        return stoppable.outcome(model, seen, loader)

    same(outcome(saves=True), outcome(saves=False))


@pytest.mark.parametrize("kind", ["map", "stream"])
@pytest.mark.parametrize("own", [False, True])
def test_persistent_workers_of_a_run_saved_between_two_passes_draw_no_seed_again(kind, own):
    """The order of the next pass, and dropout, had been others."""

    def parts():
        generator, model = torch.Generator().manual_seed(3) if own else None, network()
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        data, shuffle = (Stream(80), None) if kind == "stream" else (Numbered(80), True)
        return model, optimizer, adaptive(
            data, model, optimizer, 8, shuffle=shuffle, generator=generator, num_workers=1, persistent_workers=True,
            overhead=0, epochs=3,
        )  # fmt: skip

    def epochs(run, n: int):
        model, optimizer, loader = run
        return [batch[2].tolist() for _ in range(n) for batch in trained_on(model, optimizer, loader, [])]

    def states(run):
        return through_a_file([*(part.state_dict() for part in run), torch.get_rng_state()])

    run, again = parts(), parts()
    epochs(run, 1)
    saved = states(run)
    unbroken = epochs(run, 2), run[0].state_dict(), torch.get_rng_state().tolist()
    for part, state in zip(again, saved, strict=False):
        part.load_state_dict(state)
    torch.set_rng_state(saved[-1])
    assert epochs(again, 2) == unbroken[0]
    assert torch.get_rng_state().tolist() == unbroken[2]
    assert all(torch.equal(a, b) for a, b in zip(again[0].state_dict().values(), unbroken[1].values(), strict=True))

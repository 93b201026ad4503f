"""An epoch's indices: those of the sampler itself, drawn again from a state whose size is that of a few numbers."""

from __future__ import annotations

import io
import itertools
import tracemalloc
from itertools import islice

import pytest
import torch
from torch import Generator
from torch.utils.data import RandomSampler, Sampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler

from adaptbs.ranks import Ranks
from adaptbs.sampling.draw import CHUNK, draw, read_all, redraw
from adaptbs.sampling.ranks import SharedSampler

KINDS = {
    "range": lambda n, generator: range(n),
    "sequential": lambda n, generator: SequentialSampler(range(n)),
    "random": lambda n, generator: RandomSampler(range(n), generator=generator),
    "fewer": lambda n, generator: RandomSampler(range(n), num_samples=n // 2, generator=generator),
    "more": lambda n, generator: RandomSampler(range(n), num_samples=3 * n, generator=generator),
    "replacement": lambda n, generator: RandomSampler(range(n), True, num_samples=2 * n, generator=generator),
    "subset": lambda n, generator: SubsetRandomSampler(range(7, n), generator),
    "names": lambda n, generator: SubsetRandomSampler([str(i) for i in range(n)], generator),
    "weighted": lambda n, generator: WeightedRandomSampler(torch.arange(1.0, n + 1), n, generator=generator),
}
# Several draws from a generator of the user's: somebody else may draw in between, so the indices themselves are kept.
KEPT = {("more", True), ("replacement", True)}
every = pytest.mark.parametrize(("kind", "given"), [(kind, given) for kind in KINDS for given in (False, True)])


class Unknown(Sampler):
    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self):
        return iter(torch.randperm(self.n).tolist())

    def __len__(self) -> int:
        return self.n


def seeded(kind: str, given: bool, n: int = 101):
    """A sampler, and a function that returns the states of all generators that it may draw from."""
    torch.manual_seed(3)
    generator = Generator().manual_seed(4) if given else None
    return KINDS[kind](n, generator), lambda: [
        torch.get_rng_state().tolist(), *([generator.get_state().tolist()] if given else [])
    ]  # fmt: skip


@every
@pytest.mark.parametrize("n", [1, 9, 101, 2 * CHUNK + 5])
def test_the_indices_and_what_was_drawn_for_them_are_the_samplers_own(kind, given, n):
    if kind in ("fewer", "subset") and n < 10:
        return
    sampler, states = seeded(kind, given, n)
    stock, drawn = list(sampler), states()
    sampler, states = seeded(kind, given, n)
    assert list(draw(sampler).indices) == stock
    assert states() == drawn


@every
@pytest.mark.parametrize("position", [0, 1, 9, 40, 50])
def test_drawn_again_from_any_place_whatever_was_drawn_meanwhile(kind, given, position):
    sampler, _ = seeded(kind, given)
    first = draw(sampler)
    whole = list(islice(first.indices, position))
    if (kind, given) in KEPT:
        assert not first.can_be_saved
        return
    torch.rand(5, generator=getattr(sampler, "generator", None))
    torch.rand(5)
    state = through_a_file(first.state_dict(position))
    whole += first.indices
    another, states = seeded(kind, given)
    before = states()
    again = redraw(another, state)
    assert states() == before, "what is drawn again comes from no generator of the user's"
    assert whole[position:] == list(again.indices)
    assert whole == list(draw(seeded(kind, given)[0]).indices)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


def size(state) -> int:
    file = io.BytesIO()
    torch.save(state, file)
    return file.tell()


@every
def test_the_state_is_no_larger_where_there_are_more_samples(kind, given):
    if (kind, given) in KEPT:
        return
    sizes = []
    for n in (100, 100_000):
        drawn = draw(seeded(kind, given, n)[0])
        next(drawn.indices)
        sizes.append(size(drawn.state_dict(1)))
    assert abs(sizes[1] - sizes[0]) <= 64


@pytest.mark.parametrize("saved_at", ["before the end", "at the end"])
def test_the_draw_after_the_last_index_is_made_once(saved_at):
    """Stock RandomSampler draws a permutation more when it is asked for what follows a whole one."""
    generator = Generator().manual_seed(4)
    list(RandomSampler(range(9), generator=generator))
    stock = generator.get_state()
    generator.manual_seed(4)
    sampler = RandomSampler(range(9), generator=generator)
    first = draw(sampler)
    list(islice(first.indices, 7 if saved_at == "before the end" else None))
    state, now = first.state_dict(7), generator.get_state()
    generator.manual_seed(99)
    again = redraw(sampler, state)
    generator.set_state(now)
    assert len(list(again.indices)) == 2
    assert torch.equal(generator.get_state(), stock)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (RandomSampler(range(102)), "RandomSampler of 101 indices, this one by a RandomSampler of 102"),
        (SequentialSampler(range(101)), "this one by a SequentialSampler of 101"),
        (Unknown(101), "this one by a Unknown of 101"),
    ],
)
def test_another_order_is_refused(other, words):
    state = draw(RandomSampler(range(101))).state_dict(3)
    with pytest.raises(ValueError, match=words):
        redraw(other, state)


def test_an_order_that_comes_out_differently_is_refused():
    """As from another version of torch, or with other weights."""
    state = draw(seeded("weighted", True)[0]).state_dict(3)
    with pytest.raises(ValueError, match="drawn again from the saved state, is another"):
        redraw(WeightedRandomSampler(torch.arange(101.0, 0, -1), 101), state)


@pytest.mark.parametrize(
    ("saved", "loaded"), [*itertools.product(["random", "fewer", "more", "replacement"], repeat=2)]
)
@pytest.mark.parametrize(("own", "owns"), [*itertools.product([False, True], repeat=2)])
def test_another_way_to_draw_gives_the_saved_order_or_is_refused(saved, own, loaded, owns):
    """Where the sampler's options differ but neither its type nor its length."""
    if (saved, own) in KEPT:
        return
    kinds = {
        "random": lambda n, generator: RandomSampler(range(n), generator=generator),
        "fewer": lambda n, generator: RandomSampler(range(2 * n), num_samples=n, generator=generator),
        "more": lambda n, generator: RandomSampler(range(n // 2), num_samples=n, generator=generator),
        "replacement": lambda n, generator: RandomSampler(range(n), True, generator=generator),
    }
    torch.manual_seed(1)
    first = draw(kinds[saved](40, Generator().manual_seed(2) if own else None))
    state = first.state_dict(5)
    try:
        again = list(redraw(kinds[loaded](40, Generator().manual_seed(3) if owns else None), state).indices)
    except ValueError as error:
        assert "is another" in str(error) and saved != loaded
    else:
        assert again == list(first.indices)[5:] and saved == loaded


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="torch 2.6 reads no tensor on the device meta")
def test_on_a_default_device_that_draws_from_another_generator_the_indices_are_kept():
    state = draw(seeded("weighted", True)[0]).state_dict(3)
    with torch.device("meta"):
        assert not draw(SubsetRandomSampler([])).can_be_saved
        with pytest.raises(ValueError, match="default device"):
            redraw(seeded("weighted", True)[0], state)


def test_indices_that_are_integers_are_written_as_one_tensor_and_others_as_they_are():
    assert torch.equal(read_all(iter(range(200_000))), torch.arange(200_000))
    assert read_all(iter([])).dtype == torch.int64
    assert read_all(iter(["a", "b"])) == ["a", "b"]
    mixed = [*range(70_000), "a", True, 3]
    assert read_all(iter(mixed)) == mixed


@pytest.mark.parametrize(("samples", "pad"), [(10, True), (10, False), (12, True), (3, True), (1, True)])
@pytest.mark.parametrize("make", [RandomSampler, SequentialSampler])
def test_ranks_share_the_order_of_a_stock_sampler(samples, pad, make):
    how = {"generator": Generator().manual_seed(1)} if make is RandomSampler else {}
    stock = list(make(range(samples), **how))
    drawn = how["generator"].get_state() if how else None
    if how:
        how["generator"].manual_seed(1)
    shared = SharedSampler(make(range(samples), **how), Ranks(1, 4), pad)
    whole = list(shared)
    length = -(-samples // 4) * 4 if pad else samples
    assert whole == (stock * 4)[:length] and len(shared) == length
    if how:
        assert torch.equal(how["generator"].get_state(), drawn)
        how["generator"].manual_seed(1)
    for position in range(length):
        first = shared.draw()
        if how:
            how["generator"].manual_seed(1)
        state = first.state_dict(position)
        assert list(redraw(shared, state).indices) == list(first.indices)[position:]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("make", [RandomSampler, SequentialSampler])
def test_no_list_of_the_order_is_kept(make, ranks):
    """A sequential order takes no memory, a shuffled one 8 bytes a sample in a tensor, which is no Python object's."""
    samples = 1_000_000
    sampler = make(range(samples), **({"generator": Generator()} if make is RandomSampler else {}))
    if ranks > 1:
        sampler = SharedSampler(sampler, Ranks(0, ranks), True)
    tracemalloc.start()
    try:
        indices = draw(sampler).indices
        assert len(list(islice(indices, 10))) == 10
        assert tracemalloc.get_traced_memory()[1] < 64 * CHUNK
    finally:
        tracemalloc.stop()


def test_the_number_of_an_epoch_reaches_the_sampler_that_draws(monkeypatch):
    monkeypatch.setattr("adaptbs.sampling.ranks._agreed_generator", lambda ranks: Generator())

    class Numbered(RandomSampler):
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self):
            yield from [self.epoch] * len(self)

    shared = SharedSampler(Numbered(range(4)), Ranks(1, 4), True)  # draws from a copy
    shared.set_epoch(3)
    assert list(shared) == [3] * 4

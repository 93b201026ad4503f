"""The first indices of an epoch: a sampler that is asked for no more than them, and drawn again."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import RandomSampler, Sampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler

from adaptbs.sampling import FirstSampler
from adaptbs.sampling.draw import draw, redraw


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


SAMPLERS = {
    "in order": lambda: SequentialSampler(range(20)),
    "shuffled": lambda: RandomSampler(range(20), generator=generator()),
    "shuffled by torch's generator": lambda: RandomSampler(range(20)),
    "replaced": lambda: RandomSampler(range(20), replacement=True, num_samples=20, generator=generator()),
    "weighted": lambda: WeightedRandomSampler(torch.arange(1.0, 21.0), 20, generator=generator()),
    "a subset": lambda: SubsetRandomSampler(range(20), generator=generator()),
    "of the user's": lambda: Counting(),
}


class Counting(Sampler):
    """Counts what it is asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def __len__(self) -> int:
        return 20

    def __iter__(self):
        for i in range(20):
            self.asked += 1
            yield i
        self.asked += 1


@pytest.mark.parametrize("most", [None, 7, 20, 30])
@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_it_yields_the_samplers_first_indices(make, most):
    torch.manual_seed(0)
    expected = list(make())[:most]
    torch.manual_seed(0)
    first = FirstSampler(make(), most)
    assert list(first) == expected
    assert len(first) == len(expected)


@pytest.mark.parametrize("make", [m for name, m in SAMPLERS.items() if "replaced" not in name and "user" not in name])
@pytest.mark.parametrize("position", [0, 3, 11])
def test_it_is_drawn_again_from_any_place(make, position):
    first = FirstSampler(make(), 11)
    drawn = draw(first)
    indices = list(drawn.indices)
    again = redraw(first, drawn.state_dict(position))
    assert list(again.indices) == indices[position:]


def test_it_asks_for_no_index_beyond_the_last():
    sampler = Counting()
    list(FirstSampler(sampler))
    assert sampler.asked == 20
    list(FirstSampler(sampler, 5))
    assert sampler.asked == 25
    list(FirstSampler(sampler, asks_on=True))
    assert sampler.asked == 46
    list(FirstSampler(sampler, 5, asks_on=True))
    assert sampler.asked == 51


@pytest.mark.parametrize("asks_on", [False, True])
def test_a_random_sampler_makes_its_last_draw_only_if_it_is_asked_on(asks_on):
    ours, stock = generator(), generator()
    list(FirstSampler(RandomSampler(range(20), generator=ours), asks_on=asks_on))
    indices = iter(RandomSampler(range(20), generator=stock))
    for _ in range(20 + asks_on):
        next(indices, None)
    assert torch.equal(ours.get_state(), stock.get_state())


def test_it_can_be_told_another_number_and_hands_the_epoch_on():
    class Epochs(SequentialSampler):
        def set_epoch(self, epoch):
            self.epoch = epoch

    sampler = Epochs(range(20))
    first = FirstSampler(sampler, 4)
    first.set_epoch(2)
    assert sampler.epoch == 2
    FirstSampler(SequentialSampler(range(3))).set_epoch(1)
    first.deliver(6)
    assert (first.most, list(first)) == (6, [0, 1, 2, 3, 4, 5])
    first.deliver(None)
    assert len(first) == 20

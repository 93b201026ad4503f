import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.ranks import Ranks


def epoch(n, world, batch_size, most, drop_last, parts=1, seed=None):
    """Each rank's batches of an epoch in which the batch doubles, without processes."""
    data, found = TensorDataset(torch.arange(float(n)).reshape(-1, 1), torch.zeros(n, 1)), []
    for rank in range(world):
        model = nn.Linear(1, 1)
        loader = AdaptiveDataLoader(
            data, batch_size, rank=rank, world_size=world, model=model, drop_last=drop_last,
            optimizer=torch.optim.SGD(model.parameters(), 1e-9), target=lambda _, size, __: 2 * size, overhead=0,
            step_time=(1, 0), epochs=1, decide_every=0.2, max_batch_size=most, accumulation_steps=parts,
            shuffle=seed is not None, generator=None if seed is None else torch.Generator().manual_seed(seed),
        )  # fmt: skip
        found.append([x.flatten().int().tolist() for x, _ in loader])
    return found


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(20, 150), world=st.integers(1, 8), batch_size=st.integers(1, 4), growth=st.integers(1, 4),
    drop_last=st.booleans(), parts=st.integers(1, 3), seed=st.none() | st.integers(0, 9),
)  # fmt: skip
def test_ranks_share_every_index_once_in_batches_of_one_size(n, world, batch_size, growth, drop_last, parts, seed):
    if n < batch_size * world:
        return
    ranks = epoch(n, world, batch_size, batch_size * growth, drop_last, parts, seed)
    assert len({tuple(map(len, rank)) for rank in ranks}) == 1
    delivered = [index for rank in ranks for batch in rank for index in batch]
    if drop_last:
        assert len(delivered) == len(set(delivered)) == n // (world * batch_size) * world * batch_size
    else:
        assert set(delivered) == set(range(n))
        assert len(delivered) == -(-n // world) * world


@pytest.mark.parametrize("world", [2, 3, 8])
def test_at_a_constant_size_each_rank_is_delivered_what_distributed_sampler_gives_it(world):
    for rank, batches in enumerate(epoch(50, world, 4, 4, drop_last=False)):
        stock = DataLoader(range(50), 4, sampler=DistributedSampler(range(50), world, rank, shuffle=False))
        assert batches == [x.tolist() for x in stock]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("world", [2, 3])
def test_a_loader_with_a_distributed_sampler_is_taken_over_as_it_is(world, shuffle, drop_last):
    """As a script's loop has it: `loader.sampler.set_epoch(epoch)`."""
    data = TensorDataset(torch.arange(50.0).reshape(-1, 1))
    for rank in range(world):
        model = nn.Linear(1, 1)

        def stock(rank=rank):
            return DataLoader(data, 4, sampler=DistributedSampler(data, world, rank, shuffle=shuffle, seed=3))

        ours, theirs = (
            AdaptiveDataLoader.from_loader(
                stock(), model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1), rank=rank, world_size=world,
                overhead=0, step_time=(1, 0), drop_last=drop_last,
            ),
            DataLoader(data, 4, sampler=stock().sampler, drop_last=drop_last),
        )  # fmt: skip
        for epoch in range(3):
            for loader in (ours, theirs):
                loader.sampler.set_epoch(epoch)
            assert [x.tolist() for (x,) in ours] == [x.tolist() for (x,) in theirs]


class Shuffled(DistributedSampler):
    def __iter__(self):
        return iter(range(self.rank, len(self.dataset), self.num_replicas))


@pytest.mark.parametrize(
    ("sampler", "says"),
    [(DistributedSampler(range(50), 3, 0), "is of rank 0 of 3"), (Shuffled(range(50), 2, 0), "type Shuffled")],
)
def test_one_of_other_ranks_or_of_its_own_kind_is_refused(sampler, says):
    model = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=says):
        AdaptiveDataLoader(
            TensorDataset(torch.zeros(50, 1)), 4, sampler=sampler, rank=0, world_size=2, overhead=0, step_time=(1, 0),
            model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1),
        )  # fmt: skip


def test_growth_shows_in_batches_of_every_rank():
    assert [list(map(len, rank)) for rank in epoch(64, 2, 4, 8, drop_last=True)] == [[4, 4, 8, 8, 8]] * 2


def test_alone_nothing_is_exchanged():
    alone = Ranks.from_arguments()
    assert alone == Ranks()
    assert alone.mine([1, 2]) == [1, 2]
    assert alone.agree("so") == "so"
    assert alone.gather([1.0, 2.0]) == [[1.0, 2.0]]
    assert alone.least(3.0) == 3
    assert alone.mean(torch.tensor([2.0])).tolist() == [2]
    alone.check_alike({"x": 1}, "")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"rank": 0}, ValueError, "rank=0 without world_size="),
        ({"world_size": 2}, ValueError, "world_size=2 without rank="),
        ({"rank": 2, "world_size": 2}, ValueError, "between 0 and world_size - 1"),
        ({"rank": -1, "world_size": 2}, ValueError, "between 0 and world_size - 1"),
        ({"rank": 0.0, "world_size": 2}, TypeError, "rank=0.0: it must be an integer"),
        ({"rank": True, "world_size": 2}, TypeError, "rank=True: it must be an integer"),
    ],
)
def test_what_ranks_cannot_be(arguments, error, says):
    with pytest.raises(error, match=says):
        Ranks.from_arguments(**arguments)


class Stream(IterableDataset):
    def __len__(self):
        return 64

    def __iter__(self):
        return iter(torch.zeros(64, 2))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"overhead": 0.05}, ValueError, "without a process group"),
        ({"step_time": None}, ValueError, "without a process group"),
        ({"shuffle": True}, ValueError, "cannot agree on an order"),
        ({"dataset": Stream()}, TypeError, "IterableDataset"),
        ({"batch_size": 33}, ValueError, "batch_size=33 is more than the 32 samples"),
    ],
)
def test_what_a_loader_of_several_ranks_cannot_do(arguments, error, says):
    model = nn.Linear(1, 1)
    arguments = {
        "dataset": TensorDataset(torch.zeros(64, 1), torch.zeros(64, 1)), "batch_size": 4, "rank": 1, "world_size": 2,
        "overhead": 0, "step_time": (1, 0), **arguments,
    }  # fmt: skip
    with pytest.raises(error, match=says):
        AdaptiveDataLoader(model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1), **arguments)

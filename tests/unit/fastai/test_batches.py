import tracemalloc
from types import SimpleNamespace

import pytest
from fastai.callback.data import PartialDL
from fastai.data.load import DataLoader
from fastai.torch_core import set_seed
from torch.utils.data import DataLoader as TorchLoader

from adaptbs.fastai.batches import AdaptiveBatches, _layout
from adaptbs.fastai.learner import check_loader, epoch_samples


def test_an_epoch_is_what_the_loader_delivers():
    assert epoch_samples(DataLoader(list(range(10)), bs=4)) == 10
    assert epoch_samples(DataLoader(list(range(10)), bs=4, drop_last=True)) == 8


def test_an_epoch_may_be_part_of_the_data():
    assert epoch_samples(PartialDL(list(range(10)), bs=4, partial_n=6)) == 6
    assert epoch_samples(PartialDL(list(range(10)), bs=4, partial_n=6, drop_last=True)) == 4


def test_an_indexed_loader_can_grow():
    check_loader(DataLoader(list(range(10)), bs=4))


def items():
    yield from range(10)


class LMDataLoader(DataLoader):
    seq_len, last_len = 8, 3


class DistributedDL(DataLoader):
    pass


@pytest.mark.parametrize(
    ("dl", "reason"),
    [
        (TorchLoader(list(range(10))), "not a fastai DataLoader"),
        (DataLoader(list(range(10)), bs=None), "no batch size"),
        (DataLoader(items(), bs=4), "no index"),
    ],
)
def test_other_loaders_are_refused_with_advice(dl, reason):
    with pytest.raises(TypeError, match=rf"{reason}.* Train without AdaptiveBatchSize"):
        check_loader(dl)


def test_torchs_loader_is_refused_with_the_line_that_takes_its_place():
    with pytest.raises(TypeError, match=r"from fastai\.data\.load import DataLoader"):
        check_loader(TorchLoader(list(range(10))))


def test_loaders_split_among_processes_are_refused_with_advice():
    with pytest.raises(TypeError, match=r"would not agree on a batch size\. Train without"):
        check_loader(DistributedDL(list(range(10)), bs=4))


def test_a_language_models_last_rows_are_cut_apart_where_they_are_shorter():
    dl = LMDataLoader(list(range(10)), bs=4)
    check_loader(dl)
    assert _layout(dl) == (4, 4)
    dl.last_len = 8
    assert _layout(dl) == (4, 0)
    assert _layout(DataLoader(list(range(10)), bs=4)) == (1, 0)


class Virtual:
    """So many items, none of which is kept."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> float:
        return float(i)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_no_more_of_the_order_is_kept_than_stock_keeps(shuffle, drop_last):
    n = 100_003
    delivered, held = [], []
    for ours in (False, True):
        set_seed(3)
        dl = DataLoader(Virtual(n), bs=10, shuffle=shuffle, drop_last=drop_last)
        batches = AdaptiveBatches(dl, fixed_run(n - n % 10 if drop_last else n, 10), lambda: None) if ours else dl
        tracemalloc.start()
        try:
            iteration = iter(batches)
            delivered.append([next(iteration).tolist() for _ in range(3)])
            held.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        delivered[-1] += [batch.tolist() for batch in iteration]
    assert delivered[0] == delivered[1]
    assert held[1] <= held[0] + 100_000  # (a copy of the list takes 800 kB)


def fixed_run(epoch_samples: int, batch_size: int) -> SimpleNamespace:
    """A run that measures nothing and never grows."""
    controller = SimpleNamespace(
        epoch_samples=epoch_samples, batch_size=batch_size, start_batch_size=batch_size,
        rules=SimpleNamespace(has_few_sizes=bool),
    )  # fmt: skip
    return SimpleNamespace(controller=controller, deliver=lambda batches, queue, next_pass: batches, goes_on=False)

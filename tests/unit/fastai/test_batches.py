import pytest
from fastai.callback.data import PartialDL
from fastai.data.load import DataLoader
from torch.utils.data import DataLoader as TorchLoader

from adaptbs.fastai.batches import _layout
from adaptbs.fastai.learner import check, epoch_samples


def test_an_epoch_is_what_the_loader_delivers():
    assert epoch_samples(DataLoader(list(range(10)), bs=4)) == 10
    assert epoch_samples(DataLoader(list(range(10)), bs=4, drop_last=True)) == 8


def test_an_epoch_may_be_part_of_the_data():
    assert epoch_samples(PartialDL(list(range(10)), bs=4, partial_n=6)) == 6
    assert epoch_samples(PartialDL(list(range(10)), bs=4, partial_n=6, drop_last=True)) == 4


def test_an_indexed_loader_can_grow():
    check(DataLoader(list(range(10)), bs=4))


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
        check(dl)


def test_loaders_split_among_processes_are_refused_with_advice():
    with pytest.raises(TypeError, match=r"would not agree on a batch size\. Train without"):
        check(DistributedDL(list(range(10)), bs=4))


def test_a_language_models_last_rows_are_cut_apart_where_they_are_shorter():
    dl = LMDataLoader(list(range(10)), bs=4)
    check(dl)
    assert _layout(dl) == (4, 4)
    dl.last_len = 8
    assert _layout(dl) == (4, 0)
    assert _layout(DataLoader(list(range(10)), bs=4)) == (1, 0)

import pytest
from fastai.callback.data import PartialDL
from fastai.data.load import DataLoader
from torch.utils.data import DataLoader as TorchLoader

from adaptbs.fastai_batches import check, epoch_samples


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
    pass


@pytest.mark.parametrize(
    ("dl", "reason"),
    [
        (TorchLoader(list(range(10))), "not a fastai DataLoader"),
        (DataLoader(list(range(10)), bs=None), "no batch size"),
        (DataLoader(items(), bs=4), "no index"),
        (LMDataLoader(list(range(10)), bs=4), "depends on their size"),
    ],
)
def test_other_loaders_are_refused_with_advice(dl, reason):
    with pytest.raises(TypeError, match=rf"{reason}.* Train without AdaptiveBatchSize"):
        check(dl)

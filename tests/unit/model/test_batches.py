from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from adaptbs.model.batches import batch_bytes, batch_length, concat_batches, repeat_batch, slice_batch, to_device

Pair = namedtuple("Pair", "x y")


@dataclass(frozen=True, slots=True)
class Record:
    x: torch.Tensor
    y: torch.Tensor | None = None
    name: str = field(default="name", init=False)


X, Y = torch.arange(8.0).reshape(4, 2), torch.arange(4)


@pytest.mark.parametrize("batch", [X, (X, Y), [X, Y], {"x": X}, ({"x": X}, Y), Pair(X, Y), ("name", 7, X), Record(X)])
def test_the_length_is_that_of_the_first_tensor(batch):
    assert batch_length(batch) == 4


def test_a_scalar_tensor_has_no_length():
    assert batch_length((torch.tensor(1.0), X)) == 4


@pytest.mark.parametrize("batch", [(), "text", 7, {}, torch.tensor(1.0), [1, 2, 3]])
def test_a_batch_without_a_tensor_has_none_either(batch):
    with pytest.raises(TypeError, match="no tensor with a batch dimension"):
        batch_length(batch)


def test_a_part_keeps_the_layout():
    part = slice_batch({"pair": Pair(X, Y), "list": [X]}, 1, 3)
    assert isinstance(part["pair"], Pair)
    assert part["pair"].y.tolist() == [1, 2]
    assert part["list"][0].tolist() == [[2, 3], [4, 5]]


def test_a_dataclass_is_cut_moved_and_repeated_as_a_copy():
    batch = Record(X, Y)
    part = slice_batch((batch, 7), 1, 3)[0]
    assert isinstance(part, Record)
    assert part.y.tolist() == [1, 2]
    assert part.name == "name"
    assert to_device(batch, torch.device("meta")).x.device.type == "meta"
    assert repeat_batch(batch, 6).y.tolist() == [0, 1, 2, 3, 0, 1]
    assert batch_bytes(Record(X)) == batch_bytes(X)
    assert batch.x is X and batch.y is Y


def test_what_is_not_as_long_as_the_batch_goes_along_whole():
    weights, scale = torch.ones(3), torch.tensor(2.0)
    x, w, s, name = slice_batch((X, weights, scale, "name"), 0, 2)
    assert len(x) == 2
    assert w is weights
    assert s is scale
    assert name == "name"


def test_a_batch_is_moved_as_a_copy():
    batch = (X, {"y": Y}, 7)
    moved = to_device(batch, torch.device("meta"))
    assert moved[0].device.type == moved[1]["y"].device.type == "meta"
    assert moved[2] == 7
    assert batch[0].device.type == "cpu"


@pytest.mark.parametrize(
    ("whole", "sliced"),
    [
        ([5, 3, 2, 4], [3, 2]),
        (["a", "b", "c", "d"], ["b", "c"]),
        (("a", "b", "c", "d"), ("b", "c")),  # as PyTorch collates texts
        ([{"id": i} for i in range(4)], [{"id": 1}, {"id": 2}]),
        ([[1], [2, 3], [], [4]], [[2, 3], []]),
    ],
)
def test_a_list_with_one_entry_a_sample_is_sliced(whole, sliced):
    assert slice_batch((X, whole), 1, 3)[1] == sliced
    assert slice_batch({"x": X, "more": {"lengths": whole}}, 1, 3)["more"]["lengths"] == sliced
    assert slice_batch((X, whole[:3]), 1, 3)[1] == whole[:3]


def test_a_shape_is_not_sliced():
    assert slice_batch((X, (4, 4, 4, 4)), 1, 3)[1] == (4, 4, 4, 4)


def test_an_array_with_one_entry_a_sample_is_sliced():
    x, ids, other = slice_batch((X, np.arange(4), np.arange(3)), 1, 3)
    assert len(x) == 2
    assert ids.tolist() == [1, 2]
    assert len(other) == 3


def test_a_list_of_tensors_holds_samples_or_inputs_whichever_fits():
    boxes = [torch.zeros(k, 2) for k in (0, 4, 2, 4)]
    assert [len(b) for b in slice_batch((X, boxes), 1, 3)[1]] == [4, 2]
    assert [len(b) for b in slice_batch((X, [X, X, X, X]), 1, 3)[1]] == [2, 2, 2, 2]
    itself = [X, Y, torch.ones(3), torch.ones(3)]  # the batch is its inputs, even if they are as many as its samples
    assert [len(b) for b in slice_batch(itself, 1, 3)] == [2, 2, 3, 3]


class Encoding(UserDict):
    """As Hugging Face's BatchEncoding."""

    def __getattr__(self, name):
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None


@pytest.mark.parametrize("kind", [Encoding, OrderedDict, lambda items: defaultdict(list, items)])
def test_a_mapping_stays_what_it_is(kind):
    batch = kind({"x": X, "y": Y})
    part = slice_batch(batch, 1, 3)
    assert type(part) is type(batch)
    assert part["y"].tolist() == [1, 2]
    assert batch["y"] is Y
    if kind is Encoding:
        assert to_device(batch, torch.device("meta")).y.is_meta


def test_a_mapping_that_cannot_be_changed_becomes_a_dict():
    assert slice_batch(MappingProxyType({"y": Y}), 1, 3)["y"].tolist() == [1, 2]


@pytest.mark.parametrize("layout", [lambda packed: packed, lambda packed: (packed, Y), lambda packed: {"x": [packed]}])
def test_a_packed_sequence_is_refused_with_the_way_out(layout):
    packed = pack_padded_sequence(X[..., None], [2, 2, 2, 1], batch_first=True)
    with pytest.raises(TypeError, match=r"PackedSequence.*padded, with their lengths"):
        batch_length(layout(packed))


@pytest.mark.parametrize(
    "batch",
    [
        (X, Y),
        {"pair": Pair(X, Y), "list": [X]},
        (X, ["a", "b", "c", "d"], ("e", "f", "g", "h"), [{"id": i} for i in range(4)], np.arange(4)),
        (X, torch.tensor(2.0), "name", torch.ones(3)),
    ],
)
def test_parts_joined_are_the_whole(batch):
    def plain(value):
        if isinstance(value, (torch.Tensor, np.ndarray)):
            return value.tolist()
        if isinstance(value, dict):
            return {name: plain(v) for name, v in value.items()}
        return type(value).__name__, [plain(v) for v in value] if isinstance(value, (list, tuple)) else value

    halves = [slice_batch(batch, 0, 2), slice_batch(batch, 2, 4)]
    assert plain(concat_batches(halves)) == plain(batch)
    assert plain(concat_batches([batch])) == plain(batch)


def test_batches_padded_to_different_lengths_cannot_be_joined():
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        concat_batches([(torch.ones(4, 3), Y), (torch.ones(4, 5), Y)])

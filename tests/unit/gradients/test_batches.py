from collections import namedtuple

import pytest
import torch

from adaptbs.gradients import batches

Pair = namedtuple("Pair", "x y")
X, Y = torch.arange(8.0).reshape(4, 2), torch.arange(4)


@pytest.mark.parametrize("batch", [X, (X, Y), [X, Y], {"x": X}, ({"x": X}, Y), Pair(X, Y), ("name", 7, X)])
def test_the_length_is_that_of_the_first_tensor(batch):
    assert batches.length(batch) == 4


def test_a_scalar_tensor_has_no_length():
    assert batches.length((torch.tensor(1.0), X)) == 4


@pytest.mark.parametrize("batch", [(), "text", 7, {}, torch.tensor(1.0), [1, 2, 3]])
def test_a_batch_without_a_tensor_has_none_either(batch):
    with pytest.raises(TypeError, match="no tensor with a batch dimension"):
        batches.length(batch)


def test_a_part_keeps_the_layout():
    part = batches.part({"pair": Pair(X, Y), "list": [X]}, 1, 3)
    assert isinstance(part["pair"], Pair)
    assert part["pair"].y.tolist() == [1, 2]
    assert part["list"][0].tolist() == [[2, 3], [4, 5]]


def test_what_is_not_as_long_as_the_batch_goes_along_whole():
    weights, scale = torch.ones(3), torch.tensor(2.0)
    x, w, s, name = batches.part((X, weights, scale, "name"), 0, 2)
    assert len(x) == 2
    assert w is weights
    assert s is scale
    assert name == "name"


def test_a_batch_is_moved_as_a_copy():
    batch = (X, {"y": Y}, 7)
    moved = batches.to_device(batch, torch.device("meta"))
    assert moved[0].device.type == moved[1]["y"].device.type == "meta"
    assert moved[2] == 7
    assert batch[0].device.type == "cpu"

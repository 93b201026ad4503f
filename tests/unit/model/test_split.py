"""Layouts that show which entries belong to which sample, and those that do not."""

from __future__ import annotations

import pytest
import torch

from adaptbs.model.batches import batch_length, describe_batch
from adaptbs.model.split import NotCutError, certain_repeat, certain_split, why_not_cut


@pytest.mark.parametrize(
    "batch",
    [
        (torch.ones(4, 3), torch.ones(9, 2)),  # rows of all graphs together
        (torch.ones(4, 3), {"edges": torch.ones(2, 30)}),
        (torch.ones(4, 3), torch.ones(3)),  # weights of classes
        (torch.ones(4, 3), (1, 2, 3, 4)),
        (torch.ones(4, 3), ({"boxes": torch.ones(2, 4)},) * 4),
        (torch.ones(4, 3), object()),
        {"names": ["a", "b"]},
        ([torch.ones(3, 8)] * 4, [torch.tensor(1)] * 5),  # no length is that of all
        (torch.ones(4, 3), [torch.ones(4, 2)] * 4),  # four samples, or four inputs
    ],
)
def test_what_is_not_certain(batch):
    assert why_not_cut(batch)
    with pytest.raises(NotCutError):
        certain_repeat(batch, 8)
    with pytest.raises(NotCutError, match="Give split="):
        certain_split(batch, 0, 2)


@pytest.mark.parametrize(
    "batch",
    [
        torch.ones(4, 3),
        [torch.ones(4, 3), torch.ones(4)],
        (torch.ones(4, 3), [torch.ones(i, 4) for i in range(4)], "train", 3, None, torch.tensor(0.5)),
        {"x": torch.ones(4, 3), "texts": ["a", "b", "c", "d"], "more": {"lengths": [1, 2, 3, 4]}},
        (torch.ones(4, 3), ("a", "b", "c", "d")),
        ([torch.ones(3, 8)] * 4, torch.ones(4)),  # images that differ in size, and their labels
        ([torch.ones(3, 8)] * 4, [{"boxes": torch.ones(i, 4)} for i in range(4)]),
        {"images": [torch.ones(3, 8)] * 4, "labels": [1, 2, 3, 4]},
        {"images": [torch.ones(3, 8)] * 4, "labels": [torch.tensor(1)] * 4},
        ([torch.ones(2, 3), torch.ones(2, dtype=torch.bool)], torch.ones(2)),
    ],
)
def test_what_is_certain(batch):
    assert why_not_cut(batch) is None


def test_a_list_of_samples_is_cut_whatever_the_length_of_its_tensors():
    images, boxes = [torch.full((3, 4 + i), float(i)) for i in range(4)], [torch.ones(i, 4) for i in range(4)]
    part = certain_split((images, [{"boxes": each} for each in boxes]), 1, 3)
    assert [x[0, 0].item() for x in part[0]] == [1, 2] and [len(y["boxes"]) for y in part[1]] == [1, 2]
    assert len(certain_repeat((images, torch.ones(4)), 6)[0]) == 6


def test_inputs_in_a_list_are_cut_each():
    x, mask, y = torch.ones(8, 3), torch.ones(8), torch.ones(8)
    (cut, cut_mask), _ = certain_split(([x, mask], y), 0, 2)
    assert cut.shape == (2, 3) and cut_mask.shape == (2,)


@pytest.mark.filterwarnings("ignore")  # torch says that these are in beta
@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("sparse", lambda: torch.ones(4, 2).to_sparse()),
        ("sparse", lambda: torch.ones(4, 2).to_sparse_csr()),
        ("nested", lambda: torch.nested.nested_tensor([torch.ones(2)] * 4)),
        ("nested", lambda: torch.nested.nested_tensor([torch.ones(2)] * 4, layout=torch.jagged)),
    ],
)
def test_tensors_that_torch_does_not_slice_are_refused_with_the_way_out(kind, made):
    for batch in ((made(), torch.ones(4)), {"y": torch.ones(4), "x": [made()]}):
        assert batch_length(batch) == 4 and describe_batch(batch)
        with pytest.raises(NotCutError, match=f"a {kind} .*Give split="):
            certain_split(batch, 0, 2)

"""Layouts that show which entries belong to which sample, and those that do not."""

from __future__ import annotations

import pytest
import torch

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
    ],
)
def test_what_is_certain(batch):
    assert why_not_cut(batch) is None

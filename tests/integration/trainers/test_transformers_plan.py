"""The place in the fixed run, and the parts of a step, in numbers that can be checked by hand."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers: `make trainers` runs it in .venv-trainers")

from torch.utils.data import DataLoader

from adaptbs.model import certain_split
from adaptbs.transformers.micro_batches import (
    CollateInMicroBatches,
    MicroBatches,
    SplitMicroBatches,
    micro_batches,
    parts_of_step,
)
from adaptbs.transformers.plan import Plan
from adaptbs.transformers.sampler import UpToTheEnd


def plan(**changed) -> Plan:
    """Five batches of 8, 8, 8, 8 and 4 samples, two of them a step: three steps an epoch."""
    given = {"batch_samples": 8, "epoch_samples": 36, "epoch_batches": 5, "accumulation_steps": 2, "max_steps": 7}
    return Plan(**{**given, **changed})


def test_what_an_epochs_end_leaves_of_a_step_makes_one_too():
    assert plan().epoch_steps == 3
    assert plan().samples == 2 * 36 + 16  # two epochs and a step
    assert plan().epochs == pytest.approx(88 / 36)
    assert not plan().ends_with_an_epoch and plan(max_steps=6).ends_with_an_epoch


@pytest.mark.parametrize(
    ("samples", "steps", "epoch"),
    [(0, 0, 0), (8, 0, 0.2), (16, 1, 0.4), (24, 1, 0.6), (32, 2, 0.8), (35, 2, 0.8), (36, 3, 1), (52, 4, 1.4),
     (72, 6, 2), (88, 7, 2.4), (100, 7, 2.6)],
)  # fmt: skip
def test_the_place_after_so_many_samples(samples, steps, epoch):
    assert plan().steps(samples) == steps
    assert plan().epoch(samples) == pytest.approx(epoch)


@pytest.mark.parametrize(
    ("drop_last", "ranks", "epoch_samples"),
    [(False, 1, 37), (False, 2, 38), (True, 1, 32), (True, 2, 32)],
)
def test_the_samples_of_an_epoch(drop_last, ranks, epoch_samples):
    loader = DataLoader(range(37), 8, drop_last=drop_last)
    found = Plan.of(loader, batches=3, accumulation_steps=1, world_size=ranks, max_steps=9)
    assert (found.epoch_samples, found.batch_samples) == (epoch_samples, 8 * ranks)


def test_the_last_epoch_has_as_many_indices_as_the_run_still_takes():
    sampler = UpToTheEnd(range(10))
    assert (len(sampler), list(sampler)) == (10, list(range(10)))
    for left, length in ((25, 10), (4, 4), (0, 0), (-3, 0)):
        sampler.begin_epoch(left)
        assert len(sampler) == length
        assert list(sampler) == list(range(length))


def collated(samples: int, size: int = 4):
    items = [torch.tensor([i]) for i in range(samples)]
    return CollateInMicroBatches(lambda part: {"x": torch.stack(part)}, size)(items)


def numbers(batch) -> list[list[int]]:
    return [piece.inputs["x"].flatten().tolist() for piece in batch]


def test_large_batches_come_in_micro_batches_of_equal_length():
    assert isinstance(collated(4), dict)
    assert numbers(collated(8)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [piece.samples for piece in collated(10)] == [3, 3, 4]


def test_samples_are_taken_out_of_them():
    split = SplitMicroBatches(certain_split)
    assert numbers(split(collated(10), 2, 7)) == [[2], [3, 4, 5], [6]]
    assert numbers(split(collated(10), 0, 10)) == numbers(collated(10))
    assert split(collated(4), 1, 3)["x"].flatten().tolist() == [1, 2]


def test_shares_of_a_step_add_up():
    micros = micro_batches([collated(10), collated(4)])
    assert [micro.batch_share for micro in micros] == pytest.approx([0.3, 0.3, 0.4, 1])
    assert [micro.step_share for micro in micros] == pytest.approx([0.15, 0.15, 0.2, 0.5])


@pytest.mark.parametrize(("parts", "lengths"), [(1, [5]), (2, [2, 3]), (5, [1] * 5), (7, [0, 0, 1, 1, 1, 1, 1])])
def test_the_last_part_of_a_step_is_never_empty(parts, lengths):
    micros = micro_batches([MicroBatches(collated(20))])
    found = parts_of_step(micros, parts)
    assert [len(part) for part in found] == lengths
    assert [micro for part in found for micro in part] == micros

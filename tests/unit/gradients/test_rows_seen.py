"""Rows that are not samples, and a few samples that are left out."""

from __future__ import annotations

import json

import pytest

from adaptbs.gradients.rows_seen import LATEST, RowsSeen, is_far


@pytest.mark.parametrize(
    ("rows", "samples", "far"),
    [
        (8, 8, False),
        (7, 8, False),
        (6, 8, True),
        (3, 4, False),
        (1, 2, True),
        (2, 1, True),
        (116, 128, False),
        (112, 128, True),
    ],
)
def test_a_tenth_and_a_row_are_near(rows, samples, far):
    assert is_far(rows, samples) is far


def test_a_batch_that_misses_several_is_judged_with_those_before_it():
    seen = RowsSeen()
    assert not any([seen.are_wrong(8, 8) for _ in range(LATEST)])
    assert not seen.are_wrong(5, 8)
    assert seen.are_wrong(5, 8)


def test_a_resumed_run_judges_as_the_unbroken_one():
    seen, resumed = RowsSeen(), RowsSeen()
    for _ in range(LATEST):
        seen.are_wrong(8, 8)
    resumed.load_state_dict(json.loads(json.dumps(seen.state_dict())))
    assert [each.are_wrong(5, 8) for each in (seen, resumed, RowsSeen())] == [False, False, True]


def test_what_is_in_every_batch_is_wrong_at_once_and_by_little_after_a_while():
    assert RowsSeen().are_wrong(16, 8)
    seen = RowsSeen()
    assert not seen.are_wrong(7, 8)
    assert [seen.are_wrong(7, 8) for _ in range(LATEST)][-1]


def test_a_measurement_of_all_samples_is_right_whatever_was_before():
    seen = RowsSeen()
    for _ in range(LATEST):
        assert seen.are_wrong(16, 8)
    assert not seen.are_wrong(8, 8)

"""adaptbs.lightning under ddp, two processes over gloo: Lightning's DistributedSampler is taken off."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch

pytest.importorskip("lightning", reason="needs lightning: `make trainers` runs it in .venv-trainers")

from tests.integration.processes import Forked
from tests.integration.trainers.lightning_programs import BATCH, EPOCHS, PROGRAMS, UNEVEN, main

WORLD, TIMEOUT = 2, 240  # processes; seconds, after which they are taken to hang
SHARED = UNEVEN + UNEVEN % WORLD  # samples of an epoch: one is repeated to make it even
grown_runs = pytest.mark.parametrize(("name", "parts"), [("grown", 1), ("accumulated", 2)])


@cache
def results() -> dict:
    """What each program saved, rank by rank; all of them run in the same processes, whose start takes longest."""
    out = mkdtemp()
    started = [Forked(Path(mkdtemp()), main, rank, WORLD, out) for rank in range(WORLD)]
    codes, _, errors = zip(*(rank.wait(TIMEOUT) for rank in started), strict=True)
    assert codes == (0,) * WORLD, "\n".join(errors)
    return {name: [torch.load(f"{out}/{name} {rank}.pt") for rank in range(WORLD)] for name in PROGRAMS}


@pytest.mark.parametrize("kind", ["", " accumulated"])
def test_with_growth_off_the_weights_are_bit_for_bit_stocks(kind):
    for ours, stock in zip(results()[f"off{kind}"], results()[f"stock{kind}"], strict=True):
        assert torch.equal(ours["weights"], stock["weights"])
        assert all(map(torch.equal, ours["indices"], stock["indices"]))
        for name in ("epochs", "steps", "lrs", "validated", "total", "place"):
            assert ours[name] == stock[name], name


@grown_runs
def test_the_batch_grows_and_each_sample_comes_once_an_epoch(name, parts):
    ranks = results()[name]
    assert max(map(len, ranks[0]["indices"])) >= 4 * BATCH
    for epoch in range(EPOCHS):
        came = Counter(
            index
            for rank in ranks
            for indices, e in zip(rank["indices"], rank["epochs"], strict=True)
            if e == epoch
            for index in indices.tolist()
        )
        assert len(came) == UNEVEN
        assert came.total() == SHARED
    assert [len(i) for i in ranks[0]["indices"]] == [len(i) for i in ranks[1]["indices"]]


@grown_runs
def test_ranks_stay_alike_measure_and_end_where_stock_does(name, parts):
    first, second = results()[name]
    stock = results()["stock accumulated" if parts > 1 else "stock"][0]
    assert torch.equal(first["weights"], second["weights"])
    assert first["measurements"] == second["measurements"] > 5
    assert first["steps"][-1] == stock["steps"][-1] == first["total"] == first["place"]
    assert first["lrs"][-1] == stock["lrs"][-1]
    assert len(first["indices"]) < len(stock["indices"])
    assert len(first["validated"]) == len(stock["validated"]) == EPOCHS


def test_a_fit_resumed_in_mid_epoch_ends_in_the_weights_of_the_unbroken_one():
    for result in results()["resumed"]:
        whole, rest = result["whole"], result["rest"]
        assert 0 < len(rest["indices"]) < len(whole["indices"])
        assert all(map(torch.equal, rest["indices"], whole["indices"][-len(rest["indices"]) :]))
        assert torch.equal(rest["weights"], whole["weights"])
        assert rest["steps"][-1] == whole["steps"][-1]

"""adaptbs.accelerate on several processes over gloo: as accelerate's own loader, and as one process on its data."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch

pytest.importorskip("accelerate", reason="needs accelerate: `make trainers` runs it in .venv-trainers")

from adaptbs.gradients.halves import GradientPool
from adaptbs.noise_scale.window import MeasurementWindow
from tests.integration.processes import Forked
from tests.integration.trainers.accelerate_programs import (
    BATCH,
    EPOCHS,
    PROGRAMS,
    UNEVEN,
    WHOLE,
    main,
    network,
)
from tests.integration.training import Numbered

TIMEOUT = 240  # seconds, after which processes are taken to hang
WORLDS = {2: tuple(PROGRAMS), 4: ("grown",)}
GROWN = [(2, "grown"), (2, "accumulated"), (2, "split"), (2, "by the scheduler"), (4, "grown")]
each_run = pytest.mark.parametrize(("world", "name"), GROWN)


@cache
def results(world: int) -> dict:
    """What each program saved, rank by rank; all of them run in the same processes, whose start takes longest."""
    out = mkdtemp()
    started = [Forked(Path(mkdtemp()), main, ",".join(WORLDS[world]), rank, world, out) for rank in range(world)]
    codes, _, errors = zip(*(rank.wait(TIMEOUT) for rank in started), strict=True)
    assert codes == (0,) * world, "\n".join(errors)
    return {name: [torch.load(f"{out}/{name} {rank}.pt") for rank in range(world)] for name in WORLDS[world]}


def whole(ranks: list[dict]) -> list[list[int]]:
    """The global batches, in the order that ranks share them out."""
    return [torch.cat(shares).tolist() for shares in zip(*(rank["indices"] for rank in ranks), strict=True)]


@pytest.mark.parametrize(
    ("ours", "stocks"),
    [
        ("off", "stock"), ("off unprepared", "stock"), ("off split", "stock split"), ("off seedable", "stock seedable"),
        ("off seedable unprepared", "stock seedable"),
    ],
)  # fmt: skip
def test_with_growth_off_the_weights_are_bit_for_bit_stocks(ours, stocks):
    for mine, its in zip(results(2)[ours], results(2)[stocks], strict=True):
        assert all(map(torch.equal, mine["indices"], its["indices"]))
        assert torch.equal(mine["last"], its["last"])
        for name in ("lrs", "steps", "ends", "place"):
            assert mine[name] == its[name], name
    assert len(whole(results(2)[ours])) == EPOCHS * WHOLE // (2 * BATCH)


@each_run
def test_the_batch_grows_and_every_sample_is_counted(world, name):
    ranks = results(world)[name]
    assert len(set(ranks[0]["sizes"])) >= 3
    padded = -(-UNEVEN // world) * world
    for epoch in range(EPOCHS):
        batches = zip(whole(ranks), ranks[0]["epoch"], strict=True)
        mine = [index for batch, number in batches if number == epoch for index in batch]
        assert len(mine) == padded
        assert set(mine) == set(range(UNEVEN))
        assert mine[UNEVEN:] == mine[: padded - UNEVEN], "padded by the first"


@each_run
def test_gather_for_metrics_gives_each_sample_once(world, name):
    ranks = results(world)[name]
    gathered = torch.cat(ranks[0]["gathered"])
    assert len(gathered) == EPOCHS * UNEVEN
    for epoch in gathered.split(UNEVEN):
        assert sorted(epoch.tolist()) == list(range(UNEVEN))


@each_run
def test_all_ranks_decide_alike_and_hold_the_same_weights(world, name):
    first, *others = results(world)[name]
    for other in others:
        assert other["sizes"] == first["sizes"] and other["lrs"] == first["lrs"]
        assert repr(other["history"]) == repr(first["history"])
        assert torch.equal(other["last"], first["last"])


@each_run
def test_the_schedule_ends_where_it_would(world, name):
    """It was made for the steps of one process, as accelerate wants it, and makes `world` of them a step."""
    (first, *_), parts = results(world)[name], 2 if name == "accumulated" else 1
    batches = -(-UNEVEN // (BATCH * world))
    stock = EPOCHS * -(-batches // parts) * (1 if name == "split" else world)
    assert first["place"] == min(stock, first["total"])
    assert first["total"] - first["place"] <= world * EPOCHS


@pytest.mark.parametrize("name", ["resumed", "resumed within a step"])
def test_a_resume_within_an_epoch_ends_in_the_weights_of_the_unbroken_run(name):
    for rank in results(2)[name]:
        unbroken, rest = rank["whole"], rank["rest"]
        after = len(unbroken["indices"]) - len(rest["indices"])
        assert 0 < after < len(unbroken["indices"])
        assert all(map(torch.equal, rest["indices"], unbroken["indices"][after:]))
        assert rest["lrs"] == unbroken["lrs"][after:]
        assert torch.equal(rest["last"], unbroken["last"])


def reference(weights: torch.Tensor, shares: list[torch.Tensor]):
    """The four numbers of a global batch, by one process."""
    model, data = network().eval(), Numbered(UNEVEN)
    torch.nn.utils.vector_to_parameters(weights, model.parameters())
    pool = GradientPool(len(shares[0]))
    for share in shares:
        loss = torch.nn.functional.mse_loss(model(data.x[share]), data.y[share])
        pool.add(torch.autograd.grad(loss, list(model.parameters())))
    return pool.norms()


@pytest.mark.parametrize(("world", "name"), [(2, "grown"), (2, "accumulated"), (2, "split"), (4, "grown")])
def test_the_estimate_is_that_of_one_process_on_the_same_global_batches(world, name):
    ranks, parts = results(world)[name], 2 if name == "accumulated" else 1
    ends, batches = {}, whole(ranks)
    for i, _ in enumerate(batches):
        ends[sum(map(len, batches[: i + 1]))] = i
    window, checked, compared = MeasurementWindow(sum(map(len, batches))), 0, 0
    for record in ranks[0]["history"]:
        if record["event"] == "measurement" and record["grad_sq"] is not None:
            last = ends[record["samples"]]
            shares = [torch.cat(rank["indices"][last - parts + 1 : last + 1]) for rank in ranks]
            ours = reference(ranks[0]["weights"][last], shares)
            window.add(record["samples"], ours)
            for size, norm in ((ours.small_size, ours.small), (ours.large_size, ours.large)):
                assert record["grad_sq"] + record["trace"] / size == pytest.approx(float(norm), rel=1e-5)
            checked += 1
        if record["event"] == "decision" and record["noise_scale"] is not None and parts == 1:
            window.read()
            assert record["noise_scale"] == pytest.approx(window.estimate(0.9).simple, rel=1e-5)
            compared += 1
    assert checked >= 4
    assert compared >= 2 or parts == 2

"""AdaptiveTrainer on two processes over gloo: as Trainer's own run, and as one process on the same batches."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers: `make trainers` runs it in .venv-trainers")

from tests.integration.processes import Forked
from tests.integration.trainers.transformers_programs import BATCH, EPOCHS, PROGRAMS, UNEVEN, WHOLE, main

WORLD, TIMEOUT = 2, 400  # processes; seconds, after which they are taken to hang


@cache
def results() -> dict[str, list[dict]]:
    """What each program saved, rank by rank; all of them run in the same processes, whose start takes longest."""
    out = mkdtemp()
    started = [Forked(Path(mkdtemp()), main, ",".join(PROGRAMS), rank, WORLD, out) for rank in range(WORLD)]
    codes, _, errors = zip(*(rank.wait(TIMEOUT) for rank in started), strict=True)
    assert codes == (0,) * WORLD, "\n".join(errors)
    return {name: [torch.load(f"{out}/{name} {rank}.pt") for rank in range(WORLD)] for name in PROGRAMS}


def samples(name: str) -> list[int]:
    return [i for rank in results()[name] for batch in rank["seen"] for i in batch]


@pytest.mark.parametrize("kind", ["", " accumulated"], ids=["plain", "accumulated"])
def test_with_growth_off_the_weights_are_bit_for_bit_stocks(kind):
    for mine, its in zip(results()[f"off{kind}"], results()[f"stock{kind}"], strict=True):
        assert torch.equal(mine["weights"], its["weights"])
        for name in ("seen", "steps", "loss", "training_loss", "place"):
            assert mine[name] == its[name], name
    assert Counter(samples(f"off{kind}")) == Counter({i: EPOCHS for i in range(WHOLE)})


@pytest.mark.parametrize("name", ["grown", "grown by accumulation"])
def test_ranks_grow_alike_and_train_alike(name):
    first, second = results()[name]
    assert torch.equal(first["weights"], second["weights"])
    assert first["steps"] == second["steps"] and first["history"] == second["history"]
    assert [len(batch) for batch in first["seen"]] == [len(batch) for batch in second["seen"]]
    parts = 2 if "accumulation" in name else 1
    start = parts * BATCH * WORLD
    assert first["history"][-1]["global_batch_size"] == min(8, UNEVEN // start) * start  # no more than a pass
    assert first["place"] == first["max_steps"] == first["steps"][-1]
    measured = [record for record in first["history"] if record["event"] == "measurement"]
    assert len(measured) > 3
    assert all(record["grad_sq"] is not None for record in measured)


def test_each_sample_is_seen_once_an_epoch():
    counts = Counter(samples("grown"))
    assert set(counts) == set(range(UNEVEN))
    assert sum(counts.values()) == EPOCHS * (
        UNEVEN + UNEVEN % WORLD
    )  # one is repeated, so that ranks have equally many


def test_a_run_by_steps_ends_after_the_samples_of_so_many_steps():
    steps = 20
    per_epoch = -(-(UNEVEN + 1) // (2 * BATCH * WORLD))
    epochs, rest = divmod(steps, per_epoch)
    assert len(samples("grown by accumulation")) == epochs * (UNEVEN + 1) + rest * 2 * BATCH * WORLD
    assert max(len(batch) for rank in results()["grown by accumulation"] for batch in rank["seen"]) == BATCH


def test_a_resumed_run_ends_in_the_same_weights():
    for rank in results()["resumed"]:
        whole, rest = rank["whole"], rank["rest"]
        assert torch.equal(rest["weights"], whole["weights"])
        assert rest["steps"] == [step for step in whole["steps"] if step > rank["at"]]
        assert rest["seen"] == whole["seen"][len(whole["seen"]) - len(rest["seen"]) :]

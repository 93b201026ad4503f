"""GlobalBatch with exact norms of a known noise scale: when it grows, what it keeps to, and what it refuses."""

import json
import logging
import math

import numpy as np
import pytest
import torch

from adaptbs import GlobalBatch, SquaredNorms

RAMP = [(20_000, 128), (50_000, 256)]


def norms(batch: GlobalBatch, noise_scale: float) -> SquaredNorms:
    """Those of gradients with |G|^2 = 1 and tr(Sigma) = noise_scale, without noise."""
    small, large = 8, batch.global_batch_size
    return SquaredNorms(small, 1 + noise_scale / small, large, torch.tensor(1 + noise_scale / large))


def made(**arguments) -> GlobalBatch:
    return GlobalBatch(64, **{"micro_batch_size": 8, "total": 100_000, **arguments})


def run(batch: GlobalBatch, noise_scale: float | None, until: float = math.inf) -> list[tuple[int, int]]:
    """(seen, global batch size) at each change."""
    path = [(batch.seen, batch.global_batch_size)]
    while batch.seen < min(batch.total, until):
        batch.step(norms(batch, noise_scale) if noise_scale is not None else None)
        if batch.global_batch_size != path[-1][1]:
            path.append((batch.seen, batch.global_batch_size))
    return path


def test_it_grows_in_few_large_steps_as_far_as_samples_bring_enough():
    # Adam's critical batch is 3 B_simple: (3 * 300 * 0.2 + 64) / 0.8 = 305.
    batch = made()
    assert [size for _, size in run(batch, 300.0)] == [64, 128, 256]
    assert batch.accumulation_steps == 32
    assert batch.noise_scale is not None and batch.noise_scale.simple == pytest.approx(300)
    assert run(made(adaptive=False), 300.0)[-1][1] == 128, "SGD's is 1.5 B_simple: 192"


def test_without_measurements_it_is_held_or_as_planned():
    assert run(made(), None) == [(0, 64)]
    (_, first, second) = run(made(ramp=RAMP), None)
    assert first == (20_032, 128) and second == (50_112, 256), "at the first steps from there on"


def test_a_ramp_is_brought_forward_and_delayed():
    forward, delayed = run(made(ramp=RAMP), 1e4), run(made(ramp=RAMP), 1.0)
    assert [size for _, size in forward] == [size for _, size in delayed] == [64, 128, 256]
    assert 10_000 <= forward[1][0] < 10_064 and 25_000 <= forward[2][0] < 25_128
    assert 40_000 <= delayed[1][0] < 40_064 and delayed[2][0] >= 100_000
    assert [size for _, size in run(made(ramp=RAMP, shift=math.inf), 1.0)] == [64]


def test_log_only_trains_as_planned_and_says_what_would_have_been(caplog):
    caplog.set_level(logging.INFO, "adaptbs")
    said = []
    batch = made(ramp=RAMP, acts=False, log=lambda values, seen: said.append((seen, values)))
    assert run(batch, 1e4) == run(made(ramp=RAMP), None)
    decisions = [r for r in batch.history if r["event"] == "decision"]
    early = next(r for r in decisions if r["batch_size"] == 128)
    assert early["global_batch_size"] == 64 and 10_000 <= early["samples"] < 10_064
    assert early["lr_factor"] == pytest.approx(math.sqrt(2), rel=0.01), "of twice the planned batch"
    assert "64 -> 128" in caplog.text and "only logged" in caplog.text
    assert said[-1][0] == batch.history[-1]["samples"] and said[-1][1]["lr_factor"] == 1.0


def test_log_only_without_a_ramp_keeps_the_batch():
    batch = made(acts=False)
    assert run(batch, 1e6) == [(0, 64)]
    assert batch.wanted_batch_size == 2048, "32 times the start"


def test_a_resumed_run_is_the_unbroken_one():
    whole = made(ramp=RAMP)
    path = run(whole, 150.0)
    for until in (64 * 3, 9_000, 30_000):
        begun, resumed = made(ramp=RAMP), made(ramp=RAMP)
        before = run(begun, 150.0, until)
        resumed.load_state_dict(json.loads(json.dumps(begun.state_dict())))
        assert resumed.global_batch_size == begun.global_batch_size
        assert [*before, *run(resumed, 150.0)[1:]] == path
        assert resumed.history.decisions() == whole.history.decisions()


def test_to_save_often_changes_nothing_where_decisions_are_rare():
    def measured(saves: bool) -> list[tuple]:
        rng, batch, decided = np.random.default_rng(0), made(decide_every=0.3), []
        while batch.seen < batch.total:
            decided.append((batch.seen, batch.global_batch_size, batch.noise_scale))
            if saves and len(decided) % 100 == 0:
                state, batch = batch.state_dict(), made(decide_every=0.3)
                batch.load_state_dict(json.loads(json.dumps(state)))
            batch.step(norms(batch, 150.0 * rng.uniform(0.5, 1.5)))
        return decided

    assert measured(saves=True) == measured(saves=False)


def test_a_run_goes_on_with_other_ranks_at_the_same_global_batch():
    begun = made(world_size=4)
    run(begun, 1e5, 2_100)
    fewer, larger = made(world_size=2), GlobalBatch(48, micro_batch_size=8, world_size=6, total=100_000, growth=3)
    for resumed in (fewer, larger):
        resumed.load_state_dict(begun.state_dict())
    assert fewer.global_batch_size == begun.global_batch_size == 256
    assert fewer.accumulation_steps == 2 * begun.accumulation_steps == 16
    assert larger.global_batch_size == 144, "the largest of 48, 144, 432 that is not above 256"


def test_a_size_that_another_ramp_has_planned_by_now_comes_with_the_next_step():
    begun, resumed = made(ramp=RAMP), made(ramp=[(1_000, 512)])
    run(begun, 150.0, 64 * 40)
    resumed.load_state_dict(begun.state_dict())
    assert resumed.planned_batch_size == 512 > resumed.global_batch_size
    before = len(resumed.history)
    resumed.step()
    assert len(resumed.history) == before + 1, "it has been decided on"


def test_a_step_that_is_not_finite_is_left_out():
    batch = made()
    for _ in range(200):
        batch.step(norms(batch, 1e4))
        batch.step(SquaredNorms(8, math.nan, 64, 1.0))
    assert batch.noise_scale is not None and batch.noise_scale.simple == pytest.approx(1e4)


def test_measurements_are_read_at_decisions_alone(monkeypatch):
    reads = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(len(tensor)) or tolist(tensor))
    batch = made(max_batch_size=64)
    run(batch, 1e4)
    decisions = sum(r["event"] == "decision" for r in batch.history)
    assert len(reads) <= decisions <= 101 and sum(reads) > 1400


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"micro_batch_size": 48}, ValueError, "batch_size: 64 is no multiple of micro_batch_size .* = 48.* Give 48"),
        ({"micro_batch_size": 8.0}, TypeError, "micro_batch_size=8.0: it must be an integer"),
        ({"world_size": 3}, ValueError, "64 is no multiple"),
        ({"total": 0}, ValueError, "total=0: it must be above 0 and finite"),
        ({"total": "1B"}, TypeError, "total='1B': it must be a number"),
        ({"growth": 1}, ValueError, "growth=1: it must be above 1"),
        ({"shift": 0.5}, ValueError, "shift=0.5: it must be at least 1"),
        ({"max_batch_size": 32}, ValueError, "max_batch_size=32 is below batch_size=64"),
        ({"max_batch_size": 512, "ramp": RAMP}, ValueError, "max_batch_size=512 and ramp="),
        ({"ramp": [(0, 128)]}, ValueError, "ramp=0: it must be above 0"),
        ({"ramp": [(1000, 100)]}, ValueError, "ramp: 100 is no multiple"),
        ({"ramp": [(1000, 64)]}, ValueError, "must rise"),
        ({"ramp": [(2000, 128), (1000, 256)]}, ValueError, "must rise"),
        ({"ramp": [1000, 128]}, TypeError, "list of pairs"),
        ({"ramp": []}, TypeError, "list of pairs"),
        ({"decide_every": 0}, ValueError, "decide_every=0"),
    ],
)
def test_what_cannot_be_is_refused(arguments, error, says):
    with pytest.raises(error, match=says):
        made(**arguments)


def test_norms_of_another_kind_or_unit_are_refused():
    batch = made()
    with pytest.raises(TypeError, match=r"norms=3\.0: they must be SquaredNorms"):
        batch.step(3.0)
    with pytest.raises(ValueError, match=r"large_size=65536 is above .* 64: give all sizes in one unit"):
        batch.step(SquaredNorms(8192, 1.0, 65536, 1.0))
    for small_size in (0, 64, 65):
        with pytest.raises(ValueError, match=f"small_size={small_size}, .*large_size=64: noise shows only between"):
            batch.step(SquaredNorms(small_size, 1.0, 64, 1.0))
    assert batch.seen == 0


@pytest.mark.parametrize("planned", [{"max_batch_size": np.int64(1024)}, {"ramp": [(np.int64(2_000), np.int64(512))]}])
def test_its_state_has_pythons_numbers_alone_whatever_was_given(planned):
    batch = GlobalBatch(
        np.int64(256), micro_batch_size=np.int64(8), world_size=np.int64(1), total=np.float64(10_000),
        growth=np.float64(2), shift=np.float64(2), decide_every=np.float64(0.01), **planned,
    )  # fmt: skip
    while batch.seen < batch.total:
        batch.step()
    assert json.loads(json.dumps(batch.state_dict()))["seen"] == batch.seen


@pytest.mark.parametrize("state", [{}, {"version": 6}, {"seen": 64}])
def test_another_state_is_refused_and_changes_nothing(state):
    batch = made()
    before = json.dumps(batch.state_dict())
    with pytest.raises(ValueError, match=r"give what GlobalBatch.state_dict\(\) returned"):
        batch.load_state_dict(state)
    assert json.dumps(batch.state_dict()) == before


def test_a_log_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match="log='tensorboard'"):
        made(log="tensorboard")

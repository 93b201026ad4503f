"""The critical batch from runs, of benchmarks/quality/untuned/yardstick.py."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.common.rows import Rows
from benchmarks.quality.results import Key, Part, Row
from benchmarks.quality.untuned import parts, yardstick
from benchmarks.quality.untuned.tasks import CHOOSE, UntunedTask, by, one_cycle


def rows(seed: int, base: float, *of_256: float, of_1024: tuple[float, ...] = (0.1,)) -> dict[Key, Row]:
    losses = {64: (base,), 256: of_256, 1024: of_1024}
    found = {}
    for size, made in losses.items():
        for times, loss in zip(yardstick.TIMES, made, strict=False):
            rule = yardstick.rule_of(1, size, times)
            row = {"task": "short", "rule": rule, "seed": seed, "rate": 1, "metric": loss, "training_loss": loss}
            found["short", rule, seed] = row | {"simple": 100.0}
    return found


def test_phi_by_hand():
    assert yardstick.phi_of(1.5, 256) == pytest.approx((256 - 96) / 0.5)
    phi = 300.0
    assert yardstick.phi_of((phi + 1024) / (phi + 64), 1024) == pytest.approx(phi)
    assert yardstick.phi_of(1, 256) == math.inf and yardstick.phi_of(5, 256) == 0


def test_a_batch_is_run_until_it_comes_to_both_losses():
    following = partial(yardstick.next_times, task="short", rate=1, size=256, seeds=[10])
    assert following({}) == 1
    assert following(rows(10, 0.2, 0.3)) == 1.5
    assert following(rows(10, 0.2, 0.3, 0.2)) is None
    assert following(rows(10, 0.2, 0.3, 0.3, 0.3, 0.3)) is None  # the last
    assert yardstick.next_times(rows(10, 0.2), "short", 1, 64, [10]) is None
    behind = rows(10, 0.2, 0.3, 0.2)
    behind["short", yardstick.rule_of(1, 256, 1.5), 10]["metric"] = None  # diverged
    assert following(behind) == 2.25


def test_what_is_found_by_the_mean_of_the_seeds():
    made = rows(10, 0.2, 0.3, 0.1) | rows(11, 0.2, 0.3, 0.4)
    assert yardstick.complete(made, "short", 1) == [10]
    made |= rows(11, 0.2, 0.3, 0.1)
    assert yardstick.complete(made, "short", 1) == [10, 11]
    both = partial(yardstick.found, made, "short", 1, seeds=[10, 11])
    found = both(256, loss="metric")
    assert 1 < found.needed < 1.5 and found.phi == yardstick.phi_of(found.needed, 256)
    assert both(1024, loss="metric") == (0, math.inf)
    assert yardstick.simple(made, "short", 1, [10, 11]) == 100
    assert yardstick.spreads(made, "metric") == (1, 1)
    never = yardstick.found(rows(10, 0.2, 0.3, 0.3, 0.3, 0.3), "short", 1, 256, [10], "metric")
    assert never == (math.inf, yardstick.phi_of(3.4, 256))
    assert yardstick.found(rows(10, math.inf, 0.3), "short", 1, 256, [10], "metric") is None


@pytest.fixture
def line() -> UntunedTask:
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    y = x.sum(1, keepdim=True) + torch.randn(1000, 1, generator=torch.Generator().manual_seed(1))
    return UntunedTask(
        "short", 2, adams=None, make=lambda: nn.Linear(3, 1), loss_func=F.mse_loss, train=Rows(x, y),
        evaluate=lambda model: F.mse_loss(model(x), y).item(), watched=False, lr=0.1, use=CHOOSE,
        optimizer=by(torch.optim.SGD, momentum=0.9), schedule=one_cycle, candidates=(0.1,),
    )  # fmt: skip


def test_a_run_keeps_its_batch_and_its_length(line):
    base, larger = yardstick.run(line, 1, 64, 1, 10), yardstick.run(line, 0.25, 256, 1.5, 10)
    assert (base["steps"], base["samples"]) == (31, 31 * 64) and base["measurements"] > 1
    assert (larger["steps"], larger["samples"]) == (12, 12 * 256)
    assert base["training_loss"] == pytest.approx(base["metric"], rel=1e-5)  # the same samples here


def test_passes_take_each_sample_once_and_the_last_is_cut_off():
    sampler = yardstick.Passes(10, 25, torch.Generator().manual_seed(0))
    found = list(sampler)
    assert len(found) == len(sampler) == 25
    assert sorted(found[:10]) == sorted(found[10:20]) == list(range(10)) and len(set(found[20:])) == 5


def test_the_part_goes_on_where_it_was_stopped(monkeypatch, tmp_path, line):
    monkeypatch.setattr(parts, "FOLDER", tmp_path)
    monkeypatch.setattr(parts, "RATES", (1, 0.25))
    monkeypatch.setattr(parts, "with_chosen_lr", lambda task: task)
    other = SimpleNamespace(name="gru", use="last look")
    part, made = Part("yardstick", tmp_path), []
    for work in parts.yardstick([line, other]):
        made.append((work.rule, work.seed))
        part.add(rows(work.seed, 0.2, 0.3, 0.2, of_1024=(0.3, 0.3, 0.2))["short", work.rule, work.seed])
        if len(made) == 6:
            break
    sizes = [rule.split("fixed ")[1] for rule, _ in made]
    assert sizes == [
        "64, samples x1", "256, samples x1", "256, samples x1.5",
        "1024, samples x1", "1024, samples x1.5", "1024, samples x2.25",
    ]  # fmt: skip
    assert next(iter(parts.yardstick([line]))).rule == yardstick.rule_of(0.25, 64, 1)

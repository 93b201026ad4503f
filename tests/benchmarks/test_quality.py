"""The pure parts of benchmarks/quality/."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from adaptbs import AdaptiveDataLoader
from adaptbs.decision import policy
from adaptbs.timing.step_time import StepTime
from benchmarks.common.rows import Rows
from benchmarks.quality import adaptive, compared, lengths, parts, results, rules, tables
from benchmarks.quality.model_clock import DECIDING, ModelClock, inject
from benchmarks.quality.tasks import Adams, Task
from benchmarks.quality.training import LOOKS, fixed_run

DIFFERENCES = [0.004, -0.002, 0.007, 0.001, 0.0]


def test_the_limit_is_that_of_a_paired_t_test():
    fixed = [1.0, 2.0, 4.0, 0.5, 3.0]
    ours = [f * (1 + d) for f, d in zip(fixed, DIFFERENCES, strict=True)]
    found = results.relative_differences(ours, fixed)
    assert found == pytest.approx(DIFFERENCES)
    limit = results.upper_limit(found)
    # A margin at the limit is the one that a one-sided test at 5 % just cannot tell the mean from.
    assert stats.ttest_1samp(DIFFERENCES, limit, alternative="less").pvalue == pytest.approx(0.05)


def test_a_diverged_run_is_worse_than_any_margin():
    assert results.upper_limit(results.relative_differences([1.0, None], [1.0, 1.0])) == math.inf


def test_one_difference_has_no_limit():
    with pytest.raises(ValueError, match="at least 2"):
        results.upper_limit([0.1])


def test_time_to_target_and_runs_that_never_get_there():
    curve = [(1.0, 0.9), (2.0, None), (3.0, 0.5), (4.0, 0.4)]
    assert results.time_to_target(curve, 0.5) == 3.0
    assert results.time_to_target(curve, 0.3) is None
    assert results.censored_median([3.0, None, 1.0]) == 3.0
    assert results.censored_median([None, None, 1.0]) is None


def test_the_transfer_rule():
    lr, adams = rules.transferred(1e-3, Adams((0.9, 0.99), 1e-8, 0.1), 4)
    assert (lr, *adams.betas, adams.eps) == pytest.approx((2e-3, 0.9**2, 0.99**4, 5e-9))
    assert rules.transferred(1e-3, Adams((0.9, 0.99)), 4, beta1_power=1)[1].betas[0] == pytest.approx(0.9**4)
    assert lr * adams.weight_decay == pytest.approx(4 * 1e-3 * 0.1)  # what a step takes off a weight
    assert rules.transferred(0.1, None, 4) == (0.4, None)


@pytest.mark.parametrize("mean", [64.0, 100.0, 700.0, 2000.0])
def test_a_ramp_has_the_mean_batch_it_was_asked_for(mean):
    target = adaptive.ramp(64, mean, 4096)
    sizes = [target(None, 0, piece / 100) for piece in range(100)]
    assert 100 / sum(1 / size for size in sizes) == pytest.approx(mean, rel=0.01)
    assert sizes == sorted(sizes) and sizes[0] == 64 and max(sizes) <= 4096


def test_patches_are_taken_back_and_have_to_exist():
    pace = policy.PACE
    with adaptive.patched({"adaptbs.decision.policy.PACE": 16}):
        assert policy.PACE == 16
    assert pace == policy.PACE
    unknown = adaptive.patched({"adaptbs.decision.policy.PACE": 16, "adaptbs.decision.policy.NO_SUCH": 1})
    with pytest.raises(AttributeError), unknown:
        raise AssertionError("never entered")
    assert pace == policy.PACE


@pytest.mark.parametrize("rule", [*parts.ABLATIONS, parts.adascale()], ids=lambda rule: rule.name)
def test_what_a_rule_patches_is_there(rule):
    with adaptive.patched(rule.patches):
        pass


def test_the_clock_charges_without_the_noise_that_it_shows():
    clock = ModelClock(StepTime(1.0, 0.1), noise=0.1)
    for _ in range(2000):
        clock.step(10)
    with clock.measuring(10), clock.deciding():
        pass
    timings = clock.read()
    seconds = np.array([s for _, s in timings.steps])
    assert clock.seconds == pytest.approx(2.0 * 2001 + DECIDING)
    assert timings.deciding == DECIDING and len(timings.measurements) == 1
    assert np.median(seconds) == pytest.approx(2.0, rel=0.01)
    assert np.std(np.log(seconds[seconds < 4])) == pytest.approx(0.1, rel=0.1)
    assert 0.003 < np.mean(seconds > 4) < 0.03  # hiccups
    assert clock.read().steps == []


@pytest.fixture
def line():
    """A line through noise: 200 rows, one epoch."""
    x = torch.linspace(-1, 1, 200).unsqueeze(1)
    rows = Rows(x, 2 * x.squeeze(1))
    model = lambda: torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Flatten(0))  # noqa: E731
    loss = torch.nn.functional.mse_loss
    return Task("flights", 1, Adams((0.9, 0.99)), model, loss, rows, lambda m: loss(m(x), rows.tensors[1]).item(), 0.1)


def test_a_run_repeats_and_is_looked_at_in_its_second_half(line):
    first, again = (fixed_run(line, rules.Fixed(8), 3) for _ in range(2))
    assert first == again
    assert (first["steps"], first["samples"]) == (25, 200)
    assert len(first["curve"]["metric"]) == len(LOOKS) + 1
    assert first["curve"]["samples"][0] == 104 and first["curve"]["steps"][-1] == 25
    assert first["curve"]["metric"][-1] == pytest.approx(first["metric"], rel=1e-4)


def test_a_ramp_takes_the_steps_and_samples_of_the_run_it_is_like(line):
    x = torch.linspace(-1, 1, 8192).unsqueeze(1)
    task = replace(line, train=Rows(x, 2 * x.squeeze(1)), epochs=3, lr=0.01)
    like = {"steps": 200, "samples": 30_000}
    row = adaptive.adaptive_run(task, parts.signal_free(task, "gpu", like), 3)
    assert (row["steps"], row["samples"]) == pytest.approx((200, 30_000), rel=0.05)


def test_samples_for_a_loss_are_read_off_between_two_lengths():
    samples, losses = [100, 200, 400], [0.4, 0.2, 0.1]  # a loss that falls as 1/samples
    assert lengths.samples_needed(samples, losses, 0.4) == 100
    assert lengths.samples_needed(samples, losses, 0.3) == pytest.approx(400 / 3)
    assert lengths.samples_needed(samples, losses, 0.1) == pytest.approx(400)
    assert lengths.samples_needed(samples, losses, 0.09) == math.inf
    assert lengths.samples_needed(samples, losses, 0.5) == 0
    assert lengths.samples_needed(samples, [None, 0.2, 0.1], 0.3) == 200  # (no number to read between)
    assert lengths.samples_needed([1, 2, 3, 4], [0.3, 0.4, 0.1, 0.5], 0.2) < 3  # of a noisy row the first


def test_lengths_are_compared_with_what_the_base_run_predicted(line, tmp_path):
    part, line = results.Part("lengths", tmp_path), replace(line, epochs=3)
    for seed in results.FEW:
        assert lengths.compared("flights", 16, part) is None
        part.add(lengths.measured_run(line, seed) | {"phi": 64.0, "training_loss": 0.2, "lengths": [3, 6, 9]})
        for epochs, loss in ((3, None), (6, 0.4), (9, 0.1)):  # (the first diverged)
            row = lengths.length_run(line, rules.Fixed(16), epochs, seed)
            assert (row["samples"], row["size"]) == (200 * epochs, 16) and row["training_loss"] > 0
            part.add(row | {"training_loss": loss})
    found = lengths.compared("flights", 16, part)
    assert (found.simple, found.critical) == ((16 + 64) / (64 + 64), (16 + 3 * 64) / (64 + 3 * 64))
    assert found.needed["training_loss"] == pytest.approx([2 * math.sqrt(1.5)] * 3)


def test_results_are_kept_as_they_come(line, tmp_path):
    part = results.Part("some", tmp_path)
    row = fixed_run(line, rules.Fixed(8), 3)
    part.add(row)
    again = results.Part("some", tmp_path)
    assert again.rows == {("flights", "fixed 8", 3): json.loads(json.dumps(row))}
    assert again.header["machine"]["torch"] == part.header["machine"]["torch"]


def test_a_comparison_says_what_the_runs_did(monkeypatch):
    def row(rule, seed, metric, steps, **more):
        curve = {"steps": [steps // 2, steps], "samples": [500, 1000], "metric": [2 * metric, metric]}
        return {"task": "flights", "rule": rule, "seed": seed, "metric": metric, "steps": steps, "samples": 1000} | {
            "curve": curve | ({"seconds": [1.0, 2.0]} if more else {}), **more
        }  # fmt: skip

    rows = [row("fixed 64", s, 1.0, 1000) for s in (100, 101)] + [row("x2 per epoch", s, 1.5, 500) for s in (100, 101)]
    rows += [row("adaptive 64 gpu", s, 1.001, 400, seconds=2.0) for s in (100, 101)]
    found = {results.key(r): r for r in rows}
    ours = compared.compared("flights", "adaptive 64 gpu", found)
    assert ours.passed and ours.difference == pytest.approx(0.001) and ours.steps == 0.4
    assert ours.times == {"gpu": pytest.approx(2.0 / (4e-3 * 1000 + 1e-6 * 1000))}
    assert ours.targets == {"gpu": ours.times["gpu"]} and ours.missed == 0
    worse = compared.compared("flights", "x2 per epoch", found)
    assert not worse.passed and worse.missed == 2 and worse.targets == {"gpu": None, "compute": None}
    assert compared.compared("flights", "adaptive 16 gpu", found) is None
    monkeypatch.setattr(compared, "rows", lambda: found)
    table = tables.task_table("flights")
    assert "| **adaptive from 64**, GPU-like | 1.0010 | 2 | +0.10% (+0.10%) | yes | 0.400 | 1.00 | 0.50 |" in table
    assert "never (2 of 2 never)" in table


def test_a_loader_goes_by_the_modelled_clock_it_is_given():
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    data = torch.utils.data.TensorDataset(torch.ones(64, 1), torch.zeros(64, 1))
    loader = AdaptiveDataLoader(data, 8, model=model, optimizer=optimizer, epochs=1)
    clock = ModelClock(StepTime(1.0, 0.0), seed=0)
    inject(loader, clock)
    batches = 0
    for x, y in loader:
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        batches += 1
    assert clock.seconds >= batches
    assert set(loader.history.to_dict()["source"]) - {None} == {"in step"}

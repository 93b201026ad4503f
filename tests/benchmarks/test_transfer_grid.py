"""The grid of transfer rules: stacked models, optimizers and rules against torch's own and adaptbs's."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from adaptbs import SquaredNorms
from adaptbs.hyperparameters import HyperparameterScaler, following, lr_rule, traits_of
from adaptbs.hyperparameters.learning_rate import saturating
from adaptbs.noise_scale import estimate
from benchmarks.quality.lion_betas import Lion
from benchmarks.quality.transfer_grid import models, results, rules, runs
from benchmarks.quality.transfer_grid.optimizers import Hyperparameters, begin
from benchmarks.quality.transfer_grid.rules import KINDS, NONE, Rule
from benchmarks.quality.transfer_grid.tasks import BY_NAME, TASKS
from benchmarks.quality.untuned.ablations import root_of_k

SGD, ADAMW, ADAMW_95, LION = KINDS
RUNS, PARAMETERS, BEFORE, K, AFTER = 3, 5, 4, 8, 6
PHI, DECAY = 40.0, 0.1


def theirs(kind, parameter, rate):
    if kind is SGD:
        return torch.optim.SGD([parameter], rate, momentum=kind.betas[0], weight_decay=DECAY)
    if kind is LION:
        return Lion([parameter], rate, kind.betas, DECAY)
    return torch.optim.AdamW([parameter], rate, kind.betas, runs.EPS, DECAY)


def gradients(seed, steps):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, RUNS, PARAMETERS, generator=generator, dtype=torch.float64)


def stepped(kind, rule, k_of_step, rates):
    """The weights after each step at these k, of RUNS runs at their own learning rates."""
    state = begin(torch.ones(RUNS, PARAMETERS, dtype=torch.float64))
    # The values in double precision, as torch has them.
    values = (*kind.betas, runs.EPS, DECAY)
    others = (torch.full((RUNS, 1), value, dtype=torch.float64) for value in values)
    peak, found = Hyperparameters(torch.tensor(rates, dtype=torch.float64)[:, None], *others), []
    for gradient, k in zip(gradients(0, len(k_of_step)), k_of_step, strict=True):
        (by,) = runs.scaled(kind, [rule], k, torch.tensor([PHI], dtype=torch.float64), 8)
        state = kind.step(state, gradient, runs.at(peak, by) if k > 1 else peak)
        found.append(state.weights)
    return found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_stacked_optimizers_are_torchs(kind):
    rates = [0.01, 0.02, 0.05]
    found = stepped(kind, NONE, [1] * BEFORE, rates)
    for run, rate in enumerate(rates):
        parameter = nn.Parameter(torch.ones(PARAMETERS, dtype=torch.float64))
        optimizer = theirs(kind, parameter, rate)
        for gradient, ours in zip(gradients(0, BEFORE)[:, run], found, strict=True):
            parameter.grad = gradient
            optimizer.step()
            torch.testing.assert_close(ours[run], parameter.data)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_grids_own_rule_is_what_adaptbs_did_when_it_was_run(kind, monkeypatch):
    """Steps at k = 1 and then at K of torch's optimizer, set by adaptbs, against the default rule of the grid."""
    monkeypatch.setattr("adaptbs.hyperparameters.scaler.powers", root_of_k)
    rates = [0.01, 0.02, 0.05]
    ks = [1] * BEFORE + [K] * AFTER
    found = stepped(kind, kind.default, ks, rates)
    # Measurements without spread, so that the noise scale is PHI.
    noise_scale = estimate([SquaredNorms(small_size=1, small=1 + PHI, large_size=8, large=1 + PHI / 8)] * 20)
    rule = saturating(8, 4, 1.0) if kind is SGD else lr_rule("sqrt", adaptive=True, base_batch_size=8)
    for run, rate in enumerate(rates):
        parameter = nn.Parameter(torch.ones(PARAMETERS, dtype=torch.float64))
        optimizer = theirs(kind, parameter, rate)
        scaler = HyperparameterScaler(optimizer, traits_of(optimizer))
        for gradient, ours, k in zip(gradients(0, len(ks))[:, run], found, ks, strict=True):
            parameter.grad = gradient
            factor = rule(k, noise_scale)
            scaler.scale(optimizer.param_groups, following(None, "auto"), k=k, lr_factor=factor)
            optimizer.step()
            scaler.restore()
            torch.testing.assert_close(ours[run], parameter.data, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_stack_is_its_runs_one_by_one(task):
    weights = runs.initial(task, [0, 1, 2])
    batch = tuple(
        torch.stack(parts) for parts in zip(*(task.draw(4, runs.generator(i)) for i in range(3)), strict=True)
    )
    together = runs.gradients(task, weights, batch)
    for i in range(3):
        alone = runs.gradients(task, weights[i : i + 1], tuple(part[i : i + 1] for part in batch))
        torch.testing.assert_close(together[i], alone[0], rtol=1e-4, atol=1e-6)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_gradients_are_those_of_a_torch_network():
    task = BY_NAME["digits, labels wrong"]
    weights = runs.initial(task, [0])
    x, y = task.draw(8, runs.generator("x"))
    p = runs.parameters(task, weights)
    network = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    for layer, weight, bias in ((network[0], "w1", "b1"), (network[2], "w2", "b2")):
        layer.weight.data, layer.bias.data = p[weight][0].T.clone(), p[bias][0].clone()
    nn.functional.cross_entropy(network(x), y).backward()
    expected = torch.cat([t.flatten() for t in (
        network[0].weight.grad.T, network[0].bias.grad, network[2].weight.grad.T, network[2].bias.grad)])  # fmt: skip
    torch.testing.assert_close(runs.gradients(task, weights, (x[None], y[None]))[0], expected)


def test_no_place_sees_a_later_letter():
    task = BY_NAME["letters, transformer"]
    p = runs.parameters(task, runs.initial(task, [0]))
    letters = task.draw(1, runs.generator("x"))[0][None, :, :-1]
    changed = letters.clone()
    changed[..., 3] = (changed[..., 3] + 1) % 29
    moved = (models.one_block(p, changed) - models.one_block(p, letters)).abs().amax(-1)[0]
    assert (moved[:3] == 0).all() and (moved[3:] > 0).all()


def test_b_simple_is_that_of_the_tracker():
    task = BY_NAME["teacher and student"]
    weights = runs.initial(task, [0])
    found = runs.b_simple(task, weights, runs.generator("phi"))
    draw = runs.generator("phi")
    batch = tuple(part[:, None] for part in task.draw(runs.SAMPLES, draw))
    each = runs.gradients(task, weights.expand(runs.SAMPLES, -1), batch).double()
    covariance = torch.cov(each.T)
    square = each.mean(0).square().sum() - covariance.trace() / runs.SAMPLES
    assert found == pytest.approx((covariance.trace() / square).item(), rel=1e-4)


def test_phi_between_two_looks():
    assert runs.over_the_branch([8.0] * 6, 4).unique().item() == pytest.approx(8)
    phi = runs.over_the_branch([1.0, 4.0, 16.0, 64.0, 256.0, 1024.0], 2)
    assert len(phi) == runs.BRANCH // 2
    assert phi[[0, 40, 80, 400]].tolist() == pytest.approx([1, 2, 4, 1024])
    assert phi[-1].item() == pytest.approx(1024)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_all_rules_are_the_same_at_k_1_and_none_is_there_twice(kind):
    by = runs.scaled(kind, kind.rules, 1, torch.tensor([PHI]), 8)[0]
    for part in by:
        torch.testing.assert_close(part, part[:1].expand_as(part))
    assert len(set(kind.rules)) == len(kind.rules)
    assert {NONE, kind.default} <= set(kind.rules)


def test_there_are_more_than_200_rules():
    assert len({rule for kind in KINDS for rule in kind.rules}) > 200


def test_forms():
    phi = torch.tensor([PHI])
    assert rules.lr_factor("√k", 16, phi, 8).item() == 4
    gain = (1 + 4 * PHI / 8) / (1 + 4 * PHI / 128)
    assert rules.lr_factor(rules.PHI + "4", 16, phi, 8).item() == pytest.approx(gain)
    assert rules.lr_factor(rules.ROOT + "4", 16, phi, 8).item() == pytest.approx(math.sqrt(gain))
    assert rules.decayed(0.95, rules.TO_K_FLOOR, 32) == rules.FLOOR
    assert rules.decayed(0.999, rules.TO_K_FLOOR, 32) == pytest.approx(0.999**32)
    assert rules.decayed(0.9, rules.TO_SQRT + rules.KEPT, 4) == pytest.approx(0.81)


def test_kept_momentum_keeps_the_length_of_a_steady_step():
    rule = Rule("k", beta1=rules.TO_K + rules.KEPT)
    by = runs.scaled(SGD, [rule, replace(rule, beta1=rules.STAYS)], 4, torch.tensor([PHI]), 8)[0]
    steady = by.lr / (1 - by.beta1)
    assert steady[0].item() == pytest.approx(steady[1].item())


def test_regret_and_place():
    # Two tasks, one k, three rules, two seeds.
    excess = np.array([[[[1.0, 3.0], [4.0, 4.0], [2.0, 1.0]]], [[[0.0, 0.0], [5.0, 7.0], [1.0, 1.0]]]])
    assert results.mean_regrets(excess) == pytest.approx([0.25, 4.25, 0.5])
    assert results.mean_ranks(excess) == pytest.approx([0.25, 1.0, 0.25])
    assert [results.place(results.mean_regrets(excess), rule) for rule in range(3)] == [1, 3, 2]
    mean, error = results.difference(excess, 1, 0)
    assert (mean, error) == pytest.approx((4.0, 2.0))
    (first, on_second), (second, on_first) = results.chosen_on_half([excess[:1], excess[1:]])
    assert (first, second) == (0, 0)
    assert on_second == pytest.approx([0, 7, 1])
    assert on_first == pytest.approx([0, 3, 1])


def test_a_run_that_diverged_counts_as_twice_the_loss():
    assert results.excess([1.01, 3.0, math.nan, math.inf], [1.0] * 4) == [100, 10_000, 10_000, 10_000]


def test_a_branch_sees_batches_of_its_own_and_all_rules_see_the_same():
    task = BY_NAME["teacher and student"]
    names = [("trunk", task.name, 0), *(("branch", task.name, *pair) for pair in ((0, 2), (0, 4), (1, 2)))]
    firsts = {task.draw(1, runs.generator(*name))[0][0, 0].item() for name in names}
    assert len(firsts) == len(names)


def test_a_branch_of_many_is_each_rule_and_seed_alone(monkeypatch):
    monkeypatch.setattr(runs, "BRANCH", 128)
    task, seeds = BY_NAME["teacher and student"], (0, 1)
    trunk = begin(runs.initial(task, seeds))
    settings = {"phi": [PHI] * 6, "setting": runs.Setting(0.01, 0.1)}
    both = runs.branched(task, ADAMW, [NONE, ADAMW.default], 32, trunk=trunk, seeds=seeds, **settings)
    assert both[0] != both[1]
    for rule, losses in zip((NONE, ADAMW.default), both, strict=True):
        for seed, loss in zip(seeds, losses, strict=True):
            alone = trunk.taken(torch.tensor([seed]))
            found = runs.branched(task, ADAMW, [rule], 32, trunk=alone, seeds=[seed], **settings)
            assert found == [[pytest.approx(loss, rel=1e-4)]]


def test_results_are_those_of_the_tasks_and_seeds_that_are_done(tmp_path):
    path = tmp_path / "found.jsonl"
    about = {"lr": 0.1, "weight_decay": 0.0, "phi": [20.0, 80.0], "loss": [1.0, 1.0]}
    first, second = TASKS[0].name, TASKS[3].name
    for name, seeds, value in ((second, (0, 1), 300), (first, (0, 1), 100), (first, (2, 3), 200)):
        results.Results(path).add(name, SGD.name, seeds, about, [[[value, value]]] * 5)
    found = results.Results(path)
    assert found.header["machine"]["torch"]
    assert found.tasks(SGD) == [first, second] and not found.tasks(LION)
    assert found.of(SGD)[:, 0, 0].tolist() == [[1, 1], [3, 3]]  # the second has no other seeds
    assert found.of(SGD, [first])[:, 0, 0].tolist() == [[1, 1, 2, 2]]
    assert found.sizes(SGD)[:, 0].tolist() == pytest.approx([16 / 32, 8 / 32])

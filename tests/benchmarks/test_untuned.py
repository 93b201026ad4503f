"""The pure parts of benchmarks/quality/untuned/."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adaptbs import SquaredNorms
from adaptbs.decision import counted_over_simple, sample_efficiency
from adaptbs.hyperparameters import HyperparameterScaler, following, traits_of
from adaptbs.noise_scale import estimate
from benchmarks.common.rows import Rows
from benchmarks.quality import adaptive
from benchmarks.quality.margins import UNTUNED
from benchmarks.quality.rules import Fixed, seconds_at
from benchmarks.quality.training import fixed_run
from benchmarks.quality.untuned import added, compared, parts, second_look, tables, tasks, third_look
from benchmarks.quality.untuned.ablations import measured
from benchmarks.quality.untuned.data import RARE, WORDS, Noisy, Shifted, noised, split, with_strangers
from benchmarks.quality.untuned.models import Mixer, VisionTransformer, resnet
from benchmarks.quality.untuned.persistence import persistence, persistence_run


def rows(ours: list[float | None], fixed: list[float | None], task: str = "denoising") -> dict:
    def row(rule: str, seed: int, metric: float | None) -> dict:
        work = {"steps": 100, "samples": 6400} if rule == compared.FIXED else {"steps": 50, "samples": 9600}
        return {"task": task, "rule": rule, "seed": seed, "metric": metric, "seconds": 0.25, **work}

    pairs = zip((compared.DEFAULT, compared.FIXED), (ours, fixed), strict=True)
    return {(task, rule, s): row(rule, s, metric) for rule, side in pairs for s, metric in enumerate(side)}


def test_pairs_by_hand():
    found = compared.pairs("denoising", compared.DEFAULT, rows([1.01, 2.0, 4.04], [1.0, 2.0, 4.0]))
    assert found.differences == pytest.approx([0.01, 0.0, 0.01])
    assert found.standard_error == pytest.approx(np.std([0.01, 0.0, 0.01], ddof=1) / math.sqrt(3))
    assert (found.margin, found.steps, found.batch) == (UNTUNED["denoising"].margin, 2.0, 192.0)
    assert found.times == pytest.approx(seconds_at("gpu", 100, 6400) / 0.25)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [([0.99, 0.991, 0.992], "yes"), ([1.05, 1.051, 1.052], "**no**"), ([0.9, 1.0, 1.1], "unresolved"),
     ([None, 1.0, 1.0], "**no**")],
)  # fmt: skip
def test_a_verdict_is_given_where_the_seeds_resolve_it(ours, verdict):
    assert compared.pairs("denoising", compared.DEFAULT, rows(ours, [1.0, 1.0, 1.0])).verdict == verdict


def test_one_seed_says_nothing():
    assert compared.pairs("denoising", compared.DEFAULT, rows([1.0], [1.0])) is None


def test_half_of_the_first_twenty_choose_and_twice_ten_more_look():
    source = Path(tasks.__file__).read_text()
    first, last = source.split("def _for_the_last_look")
    named = [name for name in UNTUNED if f'"{name}",' in source]
    assert sorted([*named, *added.TASKS, *second_look.TASKS, *third_look.TASKS]) == sorted(UNTUNED)
    assert sum(f'"{name}",' in first for name in UNTUNED) == sum(f'"{name}",' in last for name in UNTUNED) == 10
    assert len(second_look.TASKS) == len(third_look.TASKS) == 10


def test_the_looks_are_for_their_own_tasks_alone():
    uses = (tasks.CHOOSE, tasks.LAST_LOOK, tasks.SECOND_LOOK, tasks.THIRD_LOOK)
    looks = [SimpleNamespace(name=use, use=use) for use in uses]
    later = {tasks.SECOND_LOOK: parts.second_look, tasks.THIRD_LOOK: parts.third_look}
    for use, part in later.items():
        assert [(work.task.name, work.seed) for work in part(looks)] == [(use, seed) for seed in range(10, 15)]
        assert len([work for work in parts.fixed(looks) if work.task.name == use]) == 5
    for part in (parts.choosing, parts.starts, parts.lr_twice, parts.ablations, parts.last_look):
        assert not later.keys() & {work.task.name for work in part(looks)}
    assert set(parts.NOISY) < {*second_look.TASKS, *third_look.TASKS}
    noisy = SimpleNamespace(name=parts.NOISY[0], use=tasks.SECOND_LOOK)
    assert len(list(parts.fixed([noisy]))) == len(list(parts.second_look([noisy]))) == 10


RULES = [parts.OLD_RULE, *parts.ABLATIONS, *parts.OF_SGD, *measured("resnet")]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_a_rule_patches_is_there(rule):
    with adaptive.patched(rule.patches):
        pass


@pytest.mark.parametrize(
    ("name", "optimizer", "momentum"),
    [("Adam: beta1^√k", torch.optim.AdamW, "betas"), ("momentum^√k", torch.optim.SGD, "momentum")],
)
def test_a_rule_named_after_the_root_of_k_goes_by_it(name, optimizer, momentum):
    (rule,) = (rule for rule in (*parts.ABLATIONS, *parts.OF_SGD) if rule.name == name)
    made = optimizer([nn.Parameter(torch.ones(1))], lr=1.0, **{momentum: (0.9, 0.999) if momentum == "betas" else 0.9})
    with adaptive.patched(rule.patches):
        scaler = HyperparameterScaler(made, traits_of(made))
        scaler.scale(made.param_groups, following(None, "auto"), k=16.0, lr_factor=1.0)
        inside = made.param_groups[0][momentum]
        scaler.restore()
    assert inside == pytest.approx((0.9**4, 0.999**16) if momentum == "betas" else 0.9**4)


@pytest.mark.parametrize("by_adam", [True, False])
def test_of_adam_alone_a_step_counts_for_no_more_than_its_rate(by_adam):
    noise_scale = estimate([SquaredNorms(small_size=1, small=1001, large_size=8, large=126)] * 20)  # B_simple is 1,000
    counted = counted_over_simple(by_adam)
    (counts,) = parts.WITHIN_RATE.patches.values()
    gain = 16 * sample_efficiency(1024, 64, noise_scale, counted)
    assert 16 * counts(1024, 64, noise_scale, counted) == pytest.approx(gain**0.5 / 0.7 if by_adam else gain)


def test_a_shift_moves_an_image_by_a_pixel_at_most_and_repeats_its_edge():
    image = torch.arange(25.0).reshape(1, 1, 5, 5)
    moved, _ = Shifted(image, torch.zeros(1)).__getitems__([0] * 60)
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    possible = [padded[0, :, i : i + 5, j : j + 5] for i in range(3) for j in range(3)]
    found = {next(i for i, each in enumerate(possible) if torch.equal(each, one)) for one in moved}
    assert found == set(range(9))


def test_noise_is_what_takes_an_image_back():
    clean, share = torch.randn(50, 6), torch.rand(50, 1)
    x, noise = noised(clean, share, torch.randn(50, 6))
    assert torch.allclose((x[:, :-1] - share.sqrt() * noise) / (1 - share).sqrt(), clean, atol=1e-3)
    (x, noise), (again, _) = (Noisy(clean).__getitems__([0, 1]) for _ in range(2))
    assert x.shape == (2, 7) and noise.shape == (2, 6) and not torch.equal(x, again)


def test_strangers_are_words_and_no_padding():
    x, target = with_strangers(torch.tensor([[5, 6], [7, 8]]), torch.tensor([[0.0, 0.5, 0.9, 0.99, 0.9999]] * 2))
    assert x[:, :2].tolist() == [[5, 6], [7, 8]]
    assert x[:, 2:].min() > RARE and x[:, 2:].max() < WORDS
    assert target.tolist() == [[1, 0, 0, 0, 0, 0]] * 2


def test_a_split_holds_out_other_rows():
    found = split(torch.arange(100.0), torch.arange(100.0), held=30)
    kept, held = found.train.tensors[0], found.held[0]
    assert len(held) == 30 and sorted([*kept.tolist(), *held.tolist()]) == list(range(100))


@pytest.mark.parametrize("make", [resnet, VisionTransformer, Mixer])
def test_a_network_takes_images_and_each_for_itself(make):
    model = make().eval()
    x = torch.randn(3, 1, 14, 14)
    assert torch.allclose(model(x)[:1], model(x[:1]), atol=1e-5)


def test_every_patch_sees_every_other():
    model, x = VisionTransformer().eval(), torch.randn(1, 1, 14, 14, requires_grad=True)
    block = model.blocks[0]
    tokens = torch.randn(1, 14, 32, requires_grad=True)
    block(tokens)[0, 0].sum().backward()
    assert (tokens.grad[0].abs().sum(1) > 0).all() and model(x).shape == (1, 10)


def test_the_elbo_by_hand():
    logits, mean, log_variance = torch.zeros(1, 2), torch.tensor([[1.0]]), torch.tensor([[0.0]])
    found = tasks.negative_elbo((logits, mean, log_variance), torch.tensor([[1.0, 0.0]]))
    assert found.item() == pytest.approx(2 * math.log(2) + 0.5)


def test_schedules_end_where_they_should():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), 1.0)
    scheduler = tasks.warmed_cosine(optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] < 0.2 and max(rates) > 0.99 and rates.index(max(rates)) == 5
    assert rates[-1] == pytest.approx(0.1, abs=2e-3)


def test_groups_keep_their_own_peaks():
    layers = nn.Linear(1, 1), nn.Linear(1, 1)
    groups = [{"params": layer.parameters(), "lr": lr} for layer, lr in zip(layers, (1.0, 0.1), strict=True)]
    optimizer = torch.optim.SGD(groups)
    scheduler, most = tasks.one_cycle(optimizer, 40), [0.0, 0.0]
    for _ in range(39):
        optimizer.step()
        scheduler.step()
        most = [max(a, group["lr"]) for a, group in zip(most, optimizer.param_groups, strict=True)]
    assert most == pytest.approx([1.0, 0.1], rel=1e-2)


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_is_made_from_what_is_committed(name):
    assert tables.TABLES[name]().startswith(("| ", "Not run yet."))


def test_persistence_is_1_on_a_slope_and_training_does_not_notice_its_reading():
    x = torch.ones(1024, 1)
    task = tasks.UntunedTask(
        "slope", 2, make=lambda: nn.Linear(1, 1), loss_func=lambda out, _: out.mean(), train=Rows(x, x),
        evaluate=lambda model: model(x).mean().item(), schedule=None, optimizer=tasks.sgd, candidates=(1.0,),
        adams=None, watched=False, use=tasks.CHOOSE, lr=1.0,
    )  # fmt: skip
    row = persistence_run(task, 1, 0)
    assert row["metric"] == fixed_run(task, Fixed(64), 0, looks=())["metric"]
    assert persistence(row["readings"], (0.0, 1.0)) == pytest.approx(1.0, abs=1e-4)
    assert persistence([[0.1, 1.0, 2.0], [0.2, -2.0, 2.0], [0.9, 8.0, 1.0]], (0.1, 0.9)) == -0.25

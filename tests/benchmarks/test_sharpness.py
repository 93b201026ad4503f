"""The curvature in an optimizer's metric, of benchmarks/quality/untuned/curvature.py and sharpness.py."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from benchmarks.common.rows import Rows
from benchmarks.quality.rules import Fixed
from benchmarks.quality.training import fixed_run
from benchmarks.quality.untuned import models, predictors, sharpness
from benchmarks.quality.untuned.curvature import (
    gauss_newton,
    largest_eigenvalue,
    stability_limit,
    step_lengths,
)
from benchmarks.quality.untuned.tasks import CHOOSE, UntunedTask, by

STILL = {"eps": 1.0}  # so large beside the gradients that P is 1
OPTIMIZERS = {
    "SGD": partial(SGD, momentum=0.0),
    "SGD, momentum": partial(SGD, momentum=0.9),
    "SGD, Nesterov": partial(SGD, momentum=0.9, nesterov=True),
    "Adam": partial(Adam, **STILL),
    "AdamW": partial(AdamW, betas=(0.8, 0.95), weight_decay=0.0, **STILL),
    "NAdam": partial(NAdam, momentum_decay=0.0, **STILL),
    "RMSprop": partial(RMSprop, **STILL),
    "Adagrad": partial(Adagrad, **STILL),
}


def after(make: partial[Optimizer], curvature: float) -> tuple[float, float]:
    """(the weight of a quadratic after 1,000 steps at a learning rate of 1, the limit of such an optimizer)."""
    weight = nn.Parameter(torch.tensor([1e-30], dtype=torch.float64))
    optimizer = make([weight], lr=1.0)
    for _ in range(1000):
        optimizer.zero_grad()
        (curvature * weight**2 / 2).sum().backward()
        optimizer.step()
    return abs(weight.item()), stability_limit(optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_limit_is_where_the_optimizer_begins_to_diverge(name):
    make = OPTIMIZERS[name]
    _, limit = after(make, 1e-3)
    assert after(make, 0.97 * limit)[0] < 1e-30 < after(make, 1.03 * limit)[0]


def test_the_limit_of_adam_is_that_of_the_literature():
    assert stability_limit(Adam([torch.zeros(1)])) == pytest.approx(38)


def trained(model: nn.Module, make: partial[Optimizer], x: torch.Tensor, y: torch.Tensor) -> Optimizer:
    optimizer = make(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return optimizer


def dense(model: nn.Module, x: torch.Tensor, y: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The same matrix, from the whole Jacobian and the softmax' own formula."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    parts = torch.func.jacrev(lambda w: torch.func.functional_call(model, w, (x,)))(weights)
    jacobian = torch.cat([part.flatten(2) for part in parts.values()], 2)
    p = torch.func.functional_call(model, weights, (x,)).softmax(1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    found = (jacobian.transpose(1, 2) @ inner @ jacobian).mean(0)
    return lengths.sqrt()[:, None] * found * lengths.sqrt()


@pytest.mark.parametrize("kind", ["SGD, Nesterov", "Adam", "RMSprop", "Adagrad"])
def test_the_eigenvalue_is_that_of_the_dense_matrix(kind):
    torch.manual_seed(0)
    model, x, y = models.mlp(4, 6, 3), torch.randn(50, 4), torch.randint(0, 3, (50,))
    optimizer = trained(model, partial(OPTIMIZERS[kind].func), x, y)
    lengths = step_lengths(optimizer, list(model.parameters()))
    with gauss_newton(model, F.cross_entropy, x, y, lengths) as product:
        found, products = largest_eigenvalue(product, len(lengths))
    matrix = dense(model, x, y, lengths)
    assert found == pytest.approx(torch.linalg.eigvalsh(matrix)[-1].item(), rel=0.01) and products < 20
    vector = torch.randn(len(lengths))
    with gauss_newton(model, F.cross_entropy, x, y, lengths) as product:
        assert torch.allclose(product(vector), matrix @ vector, rtol=1e-3, atol=1e-5)


def test_words_that_have_not_been_seen_do_not_count_and_a_bag_of_them_is_curved():
    torch.manual_seed(0)
    model, seen, y = models.BagOfWords(3, 4), torch.randint(1, 20, (30, 5)), torch.randint(0, 3, (30,))
    seen[:, 4] = 0  # padding
    optimizer = trained(model, partial(Adam), seen, y)
    lengths = step_lengths(optimizer, list(model.parameters()))
    assert (lengths[: 4000 * 4].view(4000, 4)[20:] == 0).all() and (lengths[4:80] > 0).all()
    before = model(seen)
    with gauss_newton(model, F.cross_entropy, seen, y, lengths) as product:
        assert torch.allclose(model(seen), before, atol=1e-6)
        assert largest_eigenvalue(product, len(lengths))[0] > 0
    assert "forward" not in vars(model.words)


def test_a_matrix_of_low_rank_ends_soon():
    assert largest_eigenvalue(lambda v: 0 * v, 5)[0] == 0
    found, products = largest_eigenvalue(lambda v: torch.tensor([7.0, 2.0, 1.0]) * v, 3)
    assert found == pytest.approx(7) and products == 3


def test_training_does_not_notice_it_and_on_a_quadratic_all_agree():
    x = torch.ones(1280, 1)
    task = UntunedTask(
        "short", 2, adams=None, make=lambda: nn.Linear(1, 1, bias=False), loss_func=F.mse_loss, train=Rows(x, 0 * x),
        evaluate=lambda model: F.mse_loss(model(x), 0 * x).item(), watched=False, lr=0.01, use=CHOOSE,
        optimizer=by(SGD), schedule=None, candidates=(0.01,),
    )  # fmt: skip
    row = sharpness.sharpness_run(task, 2, 0)
    at = fixed_run(UntunedTask(**{**vars(task), "lr": 0.02}), Fixed(64), 0, looks=())
    assert row["metric"] == at["metric"] and len(row["readings"]) == 4
    for reading in row["readings"]:
        # The loss is w^2, so that its curvature is 2.
        assert reading["sharpness"] == pytest.approx(2 * 0.02) and reading["limit"] == 2
        assert reading["along"] == pytest.approx(reading["sharpness"], rel=1e-3)
        assert reading["change"] == pytest.approx(reading["sharpness"], rel=1e-3)
        assert reading["between"] == pytest.approx(reading["sharpness"], rel=0.05)  # pooled over a step fewer
    found = sharpness.phi_by({("short", "lr x 2", 0): row}, "short", 2, "sharpness")
    assert found == pytest.approx(64 * 2 / 0.04) and sharpness.phi_by({}, "short", 2, "along") is None


def test_a_random_model_with_batch_norm_keeps_its_buffers():
    torch.manual_seed(0)
    model, x, y = models.resnet(), torch.randn(32, 1, 14, 14), torch.randint(0, 10, (32,))
    optimizer = trained(model, partial(SGD), x, y)
    buffers = [buffer.clone() for buffer in model.buffers()]
    with gauss_newton(model, F.cross_entropy, x, y, step_lengths(optimizer, list(model.parameters()))) as product:
        assert largest_eigenvalue(product, sum(p.numel() for p in model.parameters()))[0] > 0
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))


def case(task: str, rate: float, truth: float, simple: float) -> predictors.Case:
    return predictors.Case(task, rate, truth, simple, {"sharpness": 4000.0})


def test_predictors_by_hand():
    cases = [case("vit", 0.25, 100, 100), case("vit", 1, 200, 100), case("vit", 2, 400, 200)]
    cases.append(case("resnet", 1, 100, 300))
    simple, sharp = predictors.PREDICTORS["3 B_simple (1.5 for SGD)"], predictors.PREDICTORS["φ_sharp"]
    made = predictors.errors(cases, simple)
    assert made == pytest.approx([0, -math.log(2), -math.log(2), math.log(3)])
    assert predictors.off_by(made) == pytest.approx(2) and predictors.within(made) == 3
    assert predictors.errors(cases, sharp)[0] == pytest.approx(math.log(2048 / 100))  # cut off
    assert predictors.changes(cases, simple) == pytest.approx([-math.log(2), 0])  # not of SGD, nor from task to task
    own = predictors.with_own_constant(cases, simple)
    assert own == pytest.approx([-math.log(3), -math.log(6), -math.log(6), math.log(6)])
    power, by_rate = predictors.power_of_rate([case("vit", rate, 50 * rate, 100) for rate in (0.25, 1, 2)])
    assert power == pytest.approx(1) and by_rate(cases[0]) == pytest.approx(25)

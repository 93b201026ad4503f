"""Views of the gradient, by group and in Adam's metric, against all per-example gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from fastai.optimizer import Adam as FastaiAdam
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, RMSprop

from adaptbs.gradients.halves import HalfBatches
from adaptbs.gradients.views import DEAD, views_of
from adaptbs.model.batch_loss import BatchLoss
from adaptbs.types import SquaredNorms
from tests.problems import digits, digits_mlp, per_example_gradients

BATCH = digits()[:64]


def brute(gradients: Tensor) -> tuple[float, float]:
    """mean |g|^2 over the two halves, and |their mean|^2."""
    first, second = (half.mean(0) for half in gradients.chunk(2))
    return (first.square().sum() + second.square().sum()).item() / 2, ((first + second) / 2).square().sum().item()


def agree(norms: SquaredNorms, gradients: Tensor) -> None:
    assert (norms.small_size, norms.large_size) == (32, 64)
    assert (float(norms.small), float(norms.large)) == pytest.approx(brute(gradients), rel=1e-4)


def trained(optimizer, model: nn.Module, steps: int = 5) -> None:
    for i in range(steps):
        x, y = digits()[64 * i : 64 * i + 64]
        cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def measured(model: nn.Module, optimizer, **views) -> SquaredNorms:
    made = views_of(optimizer, **({"metric": "plain", "by_group": False} | views))
    return HalfBatches(model, BatchLoss(cross_entropy), made).measure(BATCH)


def test_each_group_is_measured_on_its_own():
    model = digits_mlp()
    optimizer = SGD([{"params": model[0].parameters()}, {"params": model[2].parameters()}], 0.1)
    views = measured(model, optimizer, by_group=True).views
    gradients = per_example_gradients(model, cross_entropy, *BATCH)
    first = sum(p.numel() for p in model[0].parameters())
    agree(views["group 0"], gradients[:, :first])
    agree(views["group 1"], gradients[:, first:])


def test_a_frozen_group_is_left_out_until_it_trains():
    model = digits_mlp()
    optimizer = SGD([{"params": model[0].parameters()}, {"params": model[2].parameters()}], 0.1)
    model[0].requires_grad_(False)
    assert set(measured(model, optimizer, by_group=True).views) == {"group 1"}
    model[0].requires_grad_(True)
    assert set(measured(model, optimizer, by_group=True).views) == {"group 0", "group 1"}


class Branch(nn.Module):
    """Its second layer sees only samples of the second class."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.branch = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        taken = x[:, 0] > 0
        out = self.trunk(x)
        return out.masked_scatter(taken[:, None], self.branch(x[taken])) if taken.any() else out


def test_a_group_that_only_one_half_reaches_counts_as_zero_in_the_other():
    model, x, y = Branch(), torch.ones(8, 4), torch.arange(8) % 2
    x[:4, 0] = -1
    optimizer = SGD([{"params": model.trunk.parameters()}, {"params": model.branch.parameters()}], 0.1)
    views = HalfBatches(
        model, BatchLoss(cross_entropy), views_of(optimizer, metric="plain", by_group=True)
    ).measure((x, y)).views  # fmt: skip
    branch = views["group 1"]
    assert float(branch.small) == pytest.approx(2 * float(branch.large), rel=1e-5)  # of (0, g): |g|^2/2 and |g/2|^2


def scales(second_moments: list[Tensor], eps: float) -> Tensor:
    root = torch.cat([v.flatten() for v in second_moments]).double().sqrt()
    return 1 / (root.clamp(min=root[root > 0].quantile(DEAD)) + eps)


def test_adams_metric():
    model = digits_mlp()
    optimizer = Adam(model.parameters(), 1e-3, eps=1e-4)
    trained(optimizer, model)
    norms = measured(model, optimizer, metric="adam")
    scale = scales([optimizer.state[p]["exp_avg_sq"] / (1 - 0.999**5) for p in model.parameters()], 1e-4)
    agree(norms.views["adam"], per_example_gradients(model, cross_entropy, *BATCH) * scale)


def test_adams_metric_of_fastai():
    model = digits_mlp()
    optimizer = FastaiAdam([list(model.parameters())], 1e-3)
    trained(optimizer, model)
    norms = measured(model, optimizer, metric="adam")
    scale = scales([optimizer.state[p]["sqr_avg"] / (1 - 0.99**5) for p in model.parameters()], 1e-5)
    agree(norms.views["adam"], per_example_gradients(model, cross_entropy, *BATCH) * scale)


def test_in_adams_metric_a_layer_that_began_to_train_late_weighs_as_in_adams_step():
    """Its v is still small. Without the correction its gradient would make up nearly all of the norm."""
    model = digits_mlp()
    optimizer = Adam([{"params": model[0].parameters()}, {"params": model[2].parameters(), "betas": (0.9, 0.99)}], 1e-3)
    model[0].requires_grad_(False)
    trained(optimizer, model, 20)
    model[0].requires_grad_(True)
    trained(optimizer, model, 1)
    moments = [optimizer.state[p]["exp_avg_sq"] for p in model.parameters()]
    masses = [0.001, 0.001, 1 - 0.99**21, 1 - 0.99**21]
    scale = scales([v / mass for v, mass in zip(moments, masses, strict=True)], 1e-8)
    agree(
        measured(model, optimizer, metric="adam").views["adam"],
        per_example_gradients(model, cross_entropy, *BATCH) * scale,
    )


@pytest.mark.parametrize(
    ("make", "square"),
    [
        (partial(Adam, amsgrad=True), lambda state: state["max_exp_avg_sq"] / (1 - 0.999**5)),
        (RMSprop, lambda state: state["square_avg"]),
        (partial(RMSprop, centered=True), lambda state: state["square_avg"] - state["grad_avg"].square()),
    ],
)
def test_adams_metric_divides_by_what_the_step_divides_by(make, square):
    model = digits_mlp()
    optimizer = make(model.parameters(), 1e-3, eps=1e-4)
    trained(optimizer, model)
    scale = scales([square(optimizer.state[p]) for p in model.parameters()], 1e-4)
    agree(
        measured(model, optimizer, metric="adam").views["adam"],
        per_example_gradients(model, cross_entropy, *BATCH) * scale,
    )


class Rotated(nn.Module):
    """A linear layer with complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 10, dtype=torch.complex64) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1).to(torch.complex64) @ self.weight).abs()


def test_in_adams_metric_a_complex_weight_is_a_pair_of_real_ones():
    torch.manual_seed(0)
    model = Rotated()
    optimizer = Adam(model.parameters(), 1e-3, eps=1e-4)
    trained(optimizer, model)
    v = torch.view_as_real(optimizer.state[model.weight]["exp_avg_sq"]) / (1 - 0.999**5)
    gradients = []
    for half in (slice(0, 32), slice(32, 64)):
        (g,) = torch.autograd.grad(cross_entropy(model(BATCH[0][half]), BATCH[1][half]), [model.weight])
        gradients.append(torch.view_as_real(g).flatten() * scales([v], 1e-4))
    agree(measured(model, optimizer, metric="adam").views["adam"], torch.stack(gradients))


def test_dead_coordinates_do_not_dominate():
    """A pixel that is nearly always 0 has a tiny v; undivided by the floor it would be most of the noise."""
    model = digits_mlp()
    optimizer = Adam(model.parameters(), 0.0, eps=1e-30)
    trained(optimizer, model)
    for p in model.parameters():
        v = optimizer.state[p]["exp_avg_sq"]
        v[v < v.quantile(0.05)] = 1e-30
    assert float(measured(model, optimizer, metric="adam").views["adam"].trace) < 1e12


def test_a_common_factor_of_v_changes_nothing():
    model = digits_mlp()
    optimizer = Adam(model.parameters(), 1e-3, eps=1e-30)
    trained(optimizer, model)
    before = measured(model, optimizer, metric="adam").views["adam"]
    for p in model.parameters():
        optimizer.state[p]["exp_avg_sq"] *= 100
    after = measured(model, optimizer, metric="adam").views["adam"]
    assert float(after.trace / after.grad_sq) == pytest.approx(float(before.trace / before.grad_sq), rel=1e-4)


def test_before_the_first_step_there_is_no_v_and_no_such_view():
    model = digits_mlp()
    assert measured(model, Adam(model.parameters(), 1e-3), metric="adam").views == {}


def test_adams_metric_needs_an_optimizer_that_has_one():
    model = digits_mlp()
    with pytest.raises(ValueError, match=r"metric='adam' needs the second moment .* SGD does not"):
        views_of(SGD(model.parameters(), 0.1), metric="adam", by_group=False)

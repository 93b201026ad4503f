"""The fast way against the slow obvious one: all per-example gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adaptbs.gradients.halves import GradientPool, HalfBatches
from adaptbs.gradients.mean_gradient import MeanGradient
from adaptbs.model.batch_loss import BatchLoss
from tests.problems import Offset, Traps, digits, digits_mlp, half_square, per_example_gradients

cross_entropy = nn.functional.cross_entropy


def brute_halves(gradients: torch.Tensor) -> tuple[float, float]:
    """mean |G_b|^2 over the two halves and |G_B|^2, from one gradient an example."""
    first, second = (half.mean(0) for half in gradients.chunk(2))
    small = (first.square().sum() + second.square().sum()) / 2
    return small.item(), ((first + second) / 2).square().sum().item()


def test_halves_of_an_mlp():
    model, data = digits_mlp(), digits()
    batch = data[:64]
    small, large = brute_halves(per_example_gradients(model, cross_entropy, *batch))
    norms = HalfBatches(model, BatchLoss(cross_entropy)).measure(batch)
    assert (norms.small_size, norms.large_size) == (32, 64)
    assert float(norms.small) == pytest.approx(small, rel=1e-5)
    assert float(norms.large) == pytest.approx(large, rel=1e-5)


def test_odd_batch_leaves_one_example_out():
    model, data = digits_mlp(), digits()
    odd = HalfBatches(model, BatchLoss(cross_entropy)).measure(data[:65])
    even = HalfBatches(model, BatchLoss(cross_entropy)).measure(data[:64])
    assert (odd.small_size, odd.large_size) == (32, 64)
    assert float(odd.small) == pytest.approx(float(even.small), rel=1e-6)


def test_tied_frozen_and_unused_parameters():
    torch.manual_seed(0)
    model, tokens = Traps(), torch.randint(0, 10, (32,))
    targets = tokens.roll(1)
    small, large = brute_halves(per_example_gradients(model, cross_entropy, tokens, targets))
    norms = HalfBatches(model, BatchLoss(cross_entropy)).measure((tokens, targets))
    assert float(norms.small) == pytest.approx(small, rel=1e-4)
    assert float(norms.large) == pytest.approx(large, rel=1e-4)


@pytest.mark.parametrize(
    "summed",
    [nn.CrossEntropyLoss(reduction="sum"), lambda pred, target: cross_entropy(pred, target, reduction="sum")],
    ids=["says so", "shows"],
)
def test_a_summed_loss_gives_the_norms_of_the_mean(summed):
    model, batch = digits_mlp(), digits()[:64]
    of_mean = HalfBatches(model, BatchLoss(cross_entropy)).measure(batch)
    of_sum = HalfBatches(model, BatchLoss(summed)).measure(batch)
    assert float(of_sum.small) == pytest.approx(float(of_mean.small), rel=1e-5)
    assert float(of_sum.large) == pytest.approx(float(of_mean.large), rel=1e-5)


def test_a_pool_of_many_batches_is_the_mean_over_all_pairs():
    model, data = digits_mlp(), digits()
    loss = BatchLoss(cross_entropy)
    pool, gradient, flat = GradientPool(16), MeanGradient(loss), []
    for i in range(6):
        batch = data[16 * i : 16 * (i + 1)]
        pool.add(gradient(model, batch))
        flat.append(per_example_gradients(model, cross_entropy, *batch).mean(0))
    pairs = [(a @ b).item() for i, a in enumerate(flat) for j, b in enumerate(flat) if i != j]
    norms = pool.norms()
    assert float(norms.grad_sq) == pytest.approx(sum(pairs) / len(pairs), rel=1e-4)
    squares = sum((g @ g).item() for g in flat) / len(flat)
    assert float(norms.trace) == pytest.approx(16 * (squares - sum(pairs) / len(pairs)), rel=1e-4)


def test_bfloat16_gradients_are_summed_in_single_precision():
    model = nn.Linear(4, 1, bias=False).to(torch.bfloat16)
    x = torch.full((8, 4), 300.0, dtype=torch.bfloat16)  # squares beyond what half precision holds
    loss = BatchLoss(batch_loss=lambda m, batch: m(batch[0]).mean())
    norms = HalfBatches(model, loss).measure((x,))
    assert float(norms.small) == pytest.approx(4 * 300.0**2, rel=1e-2)


def test_batch_norm_buffers_gradients_and_random_state_do_not_notice():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 10))
    batch = digits()[:64]
    cross_entropy(model(batch[0]), batch[1]).backward()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    assert HalfBatches(model, BatchLoss(cross_entropy)).measure(batch) is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))


def test_quadratic_by_hand():
    # Examples 1 and 3 at weight 0: gradients -1 and -3, so mean square 5 and square of the mean 4.
    norms = HalfBatches(Offset(1), BatchLoss(half_square)).measure((torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1)))
    assert (float(norms.small), float(norms.large)) == (5.0, 4.0)
    assert float(norms.grad_sq) == 3.0  # g_1 g_2
    assert float(norms.trace) == 2.0  # the unbiased variance of -1 and -3

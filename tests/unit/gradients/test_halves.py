import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from adaptbs.gradients.halves import GradientPool, HalfBatches
from adaptbs.gradients.mean_gradient import MeanGradient, squared_norm
from adaptbs.model.batch_loss import BatchLoss

BATCH = torch.tensor([[1.0], [1.0], [3.0], [3.0]])


def product() -> nn.Module:
    """w x with w = 2: the gradient of a batch's mean output is the mean of its x."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    return model


MEAN = BatchLoss(batch_loss=lambda model, x: model(x).mean())
SUM = BatchLoss(batch_loss=lambda model, x: model(x).sum())


def numbers(norms):
    return norms.small_size, float(norms.small), norms.large_size, float(norms.large)


def test_two_halves_of_a_batch():
    # gradients 1 and 3: mean square 5, square of the mean 4
    assert numbers(HalfBatches(product(), MEAN).measure(BATCH)) == (2, 5, 4, 4)


def test_a_loss_that_sums_gives_the_same_numbers():
    assert numbers(HalfBatches(product(), SUM).measure(BATCH)) == (2, 5, 4, 4)


def test_an_odd_sample_is_not_measured():
    assert numbers(HalfBatches(product(), MEAN).measure(torch.cat([BATCH, torch.tensor([[99.0]])]))) == (2, 5, 4, 4)


def test_one_sample_cannot_be_halved():
    assert HalfBatches(product(), MEAN).measure(BATCH[:1]) is None


def test_batch_norm_needs_two_samples_in_each_half():
    model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    source = HalfBatches(model, MEAN)
    assert source.measure(BATCH[:3]) is None
    assert source.measure(BATCH) is not None
    model.eval()
    assert source.measure(BATCH[:3]) is not None


def test_training_does_not_notice():
    model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 1))
    mean, rng = model[1].running_mean.clone(), torch.get_rng_state()
    HalfBatches(model, MEAN).measure(BATCH)
    assert torch.equal(model[1].running_mean, mean)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad is None for p in model.parameters())


def test_it_measures_even_where_gradients_are_off():
    with torch.no_grad():
        assert numbers(HalfBatches(product(), MEAN).measure(BATCH)) == (2, 5, 4, 4)


def test_a_frozen_parameter_is_left_out_and_an_unreached_one_counts_nothing():
    model = nn.ModuleDict({"used": product(), "frozen": product(), "unused": nn.Linear(3, 3)})
    model["frozen"].requires_grad_(False)
    loss = BatchLoss(batch_loss=lambda model, x: (model["used"](x) + model["frozen"](x)).mean())
    assert numbers(HalfBatches(model, loss).measure(BATCH)) == (2, 5, 4, 4)


def test_a_pool_of_three_gradients():
    pool = GradientPool(size=4)
    for value in (1.0, 2.0, 6.0):
        pool.add([torch.tensor([value])])
    assert numbers(pool.norms()) == (4, pytest.approx(41 / 3), 12, pytest.approx(9))


def test_a_parameter_that_only_some_batches_reach_counts_as_zero_in_the_others():
    pool = GradientPool(size=1)
    pool.add([torch.tensor([2.0]), None])
    pool.add([torch.tensor([2.0]), torch.tensor([4.0])])
    assert numbers(pool.norms()) == (1, pytest.approx((4 + 20) / 2), 2, pytest.approx(2**2 + 2**2))


def test_one_gradient_shows_no_noise():
    pool = GradientPool(size=4)
    pool.add([torch.ones(1)])
    with pytest.raises(ValueError, match=r"1 gradient\(s\)"):
        pool.norms()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("says", [True, False])
def test_the_gradient_is_of_the_mean_whatever_the_loss_says_or_hides(reduction, says):
    module = nn.MSELoss(reduction=reduction)
    loss = BatchLoss(module if says else lambda pred, target: mse_loss(pred, target, reduction=reduction))
    (gradient,) = MeanGradient(loss)(product(), (BATCH, torch.zeros(4, 1)))
    assert gradient.item() == pytest.approx(2 * 2 * (1 + 1 + 9 + 9) / 4)  # d/dw (w x)^2 = 2 w x^2


def test_a_loss_that_says_how_it_reduces_is_not_tried_out():
    calls = []
    loss = BatchLoss(module := nn.MSELoss())
    module.register_forward_hook(lambda *_: calls.append(1))
    MeanGradient(loss)(product(), (BATCH, torch.zeros(4, 1)))
    assert len(calls) == 1


def test_a_mean_of_very_unequal_halves_is_not_taken_for_a_sum():
    uneven = torch.tensor([[1.0], [1.0], [100.0], [100.0]])
    (gradient,) = MeanGradient(MEAN)(product(), uneven)
    assert gradient.item() == 50.5


@pytest.mark.parametrize("first", [0.0, float("inf"), float("nan")])
def test_a_loss_that_shows_nothing_is_looked_at_again(first):
    gradient = MeanGradient(SUM)
    gradient(product(), torch.full((4, 1), first))
    assert gradient(product(), BATCH)[0].item() == 2


def test_the_squared_norm_is_over_all_parameters():
    assert squared_norm([torch.tensor([1.0, 2.0]), None, torch.tensor([[2.0]])]).item() == pytest.approx(9)


def test_half_precision_does_not_overflow():
    gradient = torch.full((2,), 1000.0, dtype=torch.float16)
    assert squared_norm([gradient]).item() == pytest.approx(2e6)


def test_a_sparse_gradient_counts_repeated_rows_together():
    sparse = torch.sparse_coo_tensor([[0, 0]], [[1.0], [2.0]], size=(3, 1), check_invariants=True)
    assert squared_norm([sparse]).item() == pytest.approx(9)


def test_a_loss_without_any_parameter_is_an_error():
    with pytest.raises(ValueError, match="depends on no trainable parameter"):
        squared_norm([None, None])

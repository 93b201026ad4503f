import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import mse_loss

from adaptbs.gradients.coupling import LOOKS
from adaptbs.gradients.meter import NoiseMeter
from adaptbs.gradients.per_example import Unsupported
from adaptbs.model.batch_loss import BatchLoss
from adaptbs.types import COUPLED

BATCH = (torch.randn(8, 4), torch.randn(8, 1))


def sources(measurer: NoiseMeter, times: int = 1, batch=BATCH) -> list[str]:
    return [measurer.measure(batch, len(batch[0])).source for _ in range(times)]


def untimed(model: nn.Module, **arguments) -> NoiseMeter:
    return NoiseMeter(model, BatchLoss(mse_loss), timed=False, **arguments)


def test_without_a_clock_linear_layers_are_measured_per_example():
    assert sources(untimed(nn.Linear(4, 1))) == ["per example"]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), "BatchNorm"),
        (nn.Sequential(nn.Linear(4, 1), nn.PReLU()), "PReLU"),
    ],
)
@pytest.mark.parametrize("timed", [False, True])
def test_anything_else_by_halves_and_the_reason_is_logged_once(model, why, timed, caplog):
    with caplog.at_level(logging.INFO, "adaptbs"):
        measurer = NoiseMeter(model, BatchLoss(mse_loss), timed=timed)
        first, second = measurer.measure(BATCH, 8), measurer.measure(BATCH, 8)
    assert first.source == second.source == "halves"
    assert why in first.why
    assert caplog.text.count(why) == 1


def test_without_a_clock_convolutions_by_halves():
    measurer = untimed(nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 1, 2), nn.Flatten()))
    assert measurer.measure(BATCH, 8).why == "it has convolutions"


class FakeWatch:
    """Measurements take the seconds it is told to, per example and by halves in turn."""

    def __init__(self, example: float, halves: float, reached: bool = True) -> None:
        self.now, self.taken, self.is_reached = 0.0, [example, halves], reached
        self.marks = 0

    def mark(self) -> float:
        self.marks += 1
        if self.marks % 2 == 0:  # the end of a measurement
            self.now += self.taken[(self.marks // 2 - 1) % 2]
        return self.now

    def reached(self, moment: float) -> bool:
        return self.is_reached

    def seconds(self, begin: float, end: float) -> float:
        return end - begin


@pytest.mark.parametrize(("example", "picked"), [(1.9, "per example"), (2.1, "halves")])
def test_with_a_clock_it_tries_both_and_keeps_the_one_that_pays(example, picked):
    measurer = NoiseMeter(nn.Linear(4, 1), BatchLoss(mse_loss))
    measurer._stopwatch = FakeWatch(example=example, halves=1.0)
    tried = sources(measurer, 8)
    assert tried == ["per example", "halves"] * 4
    made = measurer.measure(BATCH, 8)
    assert made.source == picked
    assert f"{example:.1f} times as long" in made.why


def test_it_does_not_wait_for_the_device_to_compare():
    measurer = NoiseMeter(nn.Linear(4, 1), BatchLoss(mse_loss))
    measurer._stopwatch = watch = FakeWatch(example=1.0, halves=1.0, reached=False)
    assert set(sources(measurer, 12)) == {"per example", "halves"}
    watch.is_reached = True
    assert sources(measurer, 2) == ["per example"] * 2


@pytest.mark.parametrize("choice", ["halves", "per_example"])
def test_what_is_asked_for_is_done(choice):
    made = NoiseMeter(nn.Linear(4, 1), BatchLoss(mse_loss), choice=choice).measure(BATCH, 8)
    assert (made.source, made.why) == (choice.replace("_", " "), "asked for")


def test_what_is_asked_for_and_cannot_be_is_an_error_that_says_what_to_do():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    with pytest.raises(Unsupported, match=r"source='per_example' .* BatchNorm .* Use source='auto'"):
        NoiseMeter(model, BatchLoss(mse_loss), choice="per_example").measure(BATCH, 8)


def test_batch_norm_in_evaluation_mode_does_not_stand_in_the_way_until_it_trains():
    model = nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Linear(4, 1)).eval()
    measurer = untimed(model)
    assert sources(measurer) == ["per example"]
    model.train()
    assert sources(measurer) == ["halves"]


def test_a_layer_unfrozen_later_is_counted():
    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 1))
    measurer = untimed(model)
    frozen = float(measurer.measure(BATCH, 8).norms.small)
    model.requires_grad_(True)
    assert float(measurer.measure(BATCH, 8).norms.small) > frozen


@pytest.mark.parametrize(("half", "caveat"), [(31, "BatchNorm over 31"), (32, None)])
def test_batch_norm_over_few_samples_is_a_caveat(half, caveat):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    batch = torch.randn(2 * half, 4), torch.randn(2 * half, 1)
    assert untimed(model).measure(batch, 2 * half).caveat == caveat


def contrastive(model: nn.Module, batch) -> torch.Tensor:
    a, b = model(batch[0]), model(batch[0] + 0.1)
    return F.cross_entropy(a @ b.T, torch.arange(len(a)))


def weighted(model: nn.Module, batch) -> torch.Tensor:
    labels = (batch[0][:, 0] > 1).long()
    return F.cross_entropy(model(batch[0]), labels, weight=torch.tensor([0.1, 5.0]))


def ignoring(model: nn.Module, batch) -> torch.Tensor:
    labels = torch.where(batch[0][:, 0] > 0.5, (batch[0][:, 1] > 0).long(), -100)
    return F.cross_entropy(model(batch[0]), labels)


def summed(model: nn.Module, batch) -> torch.Tensor:
    return model(batch[0]).square().sum()


@pytest.mark.parametrize(
    ("loss", "coupled"), [(contrastive, True), (weighted, False), (ignoring, False), (summed, False)]
)
@pytest.mark.parametrize("layer", [nn.Identity, lambda: nn.Dropout(0.5), lambda: nn.BatchNorm1d(16)])
def test_a_loss_that_couples_samples_is_noticed_and_weights_are_not_mistaken_for_it(loss, coupled, layer):
    found = []
    for seed in range(10):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 16), layer(), nn.Linear(16, 2))
        measurer = NoiseMeter(model, BatchLoss(batch_loss=loss), choice="halves")
        for _ in range(LOOKS):
            made = measurer.measure((torch.randn(64, 4), torch.zeros(64)), 64)
        assert all(m.training for m in model.modules())
        found.append(made.caveat == COUPLED)
    assert found == [coupled] * 10


def test_rows_that_are_not_the_samples_are_a_caveat():
    assert untimed(nn.Linear(4, 1)).measure(BATCH, samples=5).caveat == "8 rows of 5 samples"


class Squeezed(nn.Module):
    """Cannot take one sample alone, as many a model that squeezes its output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x):
        out = self.layer(x).squeeze()
        assert out.dim() == 1
        return out[:, None]


@pytest.mark.parametrize("timed", [False, True])
def test_a_model_that_takes_no_single_example_is_measured_by_halves(timed):
    measurer = NoiseMeter(Squeezed(), BatchLoss(mse_loss), timed=timed)
    made = measurer.measure(BATCH, 8)
    assert made.source == "halves"
    assert "AssertionError" in made.why
    assert measurer.measure((BATCH[0][:2], BATCH[1][:2]), 2) is None, "too short for halves of two"


def test_an_error_by_halves_is_the_users_to_see():
    with pytest.raises(AssertionError):
        NoiseMeter(Squeezed(), BatchLoss(mse_loss), choice="halves").measure((BATCH[0][:2], BATCH[1][:2]), 2)


def test_a_loss_that_asks_for_gradients_itself_can_be_measured():
    def penalty(model: nn.Module, batch) -> torch.Tensor:
        x = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return (slope.norm(dim=1) - 1).square().mean()

    model, batch = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), (torch.randn(32, 4), torch.zeros(32))
    made = NoiseMeter(model, BatchLoss(batch_loss=penalty), choice="halves").measure(batch, 32)
    assert float(made.norms.trace) > 0


def test_coupled_samples_are_said_even_where_rows_are_not_the_samples():
    torch.manual_seed(0)
    measurer = NoiseMeter(nn.Linear(4, 16), BatchLoss(batch_loss=contrastive), choice="halves")
    for _ in range(LOOKS):
        made = measurer.measure((torch.randn(64, 4), torch.zeros(64)), samples=32)
    assert made.caveat == COUPLED

"""The pure parts of the second last look in benchmarks/quality/untuned/."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.quality.untuned import second_look, second_models
from benchmarks.quality.untuned.data import PADDING
from benchmarks.quality.untuned.second_data import Twins, on_background, rotated, waveforms


def test_a_quarter_turn_is_a_quarter_turn_and_none_is_none():
    images = torch.rand(2, 1, 14, 14)
    turned = rotated(images, torch.tensor([0.0, 0.25]))
    assert torch.allclose(turned[0], images[0], atol=1e-5)
    assert any(torch.allclose(turned[1], torch.rot90(images[1], k, (1, 2)), atol=1e-4) for k in (1, 3))


def test_an_image_hides_its_background_only_where_it_is_brighter():
    greys = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 1, 3)
    images = (greys - 0.1307) / 0.3081
    found = on_background(images, torch.tensor([0.25, 0.25, 0.75]).reshape(1, 1, 1, 3))
    assert found.flatten().tolist() == pytest.approx([-0.5, 0.0, 1.0], abs=1e-6)


def test_twins_are_of_the_same_digit_where_the_target_says_so():
    digits = torch.arange(40) % 10
    twins = Twins(digits[:, None, None, None].float().expand(-1, 1, 2, 2).contiguous(), digits)
    x, same = twins.__getitems__(list(range(40)) * 20)
    assert torch.equal(x[:, 0, 0, 0] == x[:, 1, 0, 0], same.bool())
    assert 0.4 < same.mean() < 0.6


def test_a_waveform_is_a_mixture_of_two_of_three_triangles():
    x, y = waveforms(30_000, 0)
    means = torch.stack([x[y == label].mean(0)[0] * 2 + 2 for label in range(3)])
    at = torch.arange(1.0, 22)
    middle, right, left = ((6 - (at - m).abs()).clamp(min=0) for m in (11, 15, 7))
    expected = torch.stack([middle + right, middle + left, right + left]) / 2
    assert torch.allclose(means, expected, atol=0.1) and waveforms(5, 1)[0].equal(waveforms(5, 1)[0])


def test_losses_by_hand():
    assert second_models.pinball(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([1.0])).item() == pytest.approx(0.5)
    assert second_models.pinball(torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([0.0])).item() == pytest.approx(0.5)
    distance, same = torch.tensor([0.25, 0.25, 4.0]), torch.tensor([1.0, 0.0, 0.0])
    assert second_models.contrastive(distance, same).item() == pytest.approx((0.25 + 0.25 + 0) / 3, abs=1e-5)
    logits = torch.randn(4, 3)
    assert second_look.distillation(logits, logits).item() == pytest.approx(0, abs=1e-6)
    certain = torch.tensor([[300.0, 0.0]])
    assert second_look.distillation(torch.zeros(1, 2), certain).item() == pytest.approx(9 * math.log(2), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "x", "shape"),
    [
        (second_models.Segmenter, torch.randn(3, 1, 14, 14), (3, 1, 14, 14)),
        (second_models.dropout_net, torch.randn(3, 74), (3,)),
        (lambda: second_models.WordModel(50), torch.randint(0, 50, (3, 7)), (3, 7, 50)),
        (second_models.Siamese, torch.randn(3, 2, 14, 14), (3,)),
        (lambda: second_models.Forecaster(8), torch.randn(3, 8, 48), (3, 3)),
        (second_models.signal_net, torch.randn(3, 1, 21), (3, 3)),
        (lambda: second_models.Encoder(5), torch.randint(1, 4000, (3, 32)), (3, 5)),
    ],
)
def test_a_network_takes_each_example_for_itself(make, x, shape):
    model = make().eval()
    assert model(x).shape == shape and torch.allclose(model(x)[:1], model(x[:1]), atol=1e-5)


def test_the_words_that_are_missing_say_nothing():
    model = second_models.Encoder(5).eval()
    x = torch.randint(1, 4000, (2, 32))
    x[:, 20:] = PADDING
    before = model(x)
    with torch.no_grad():
        model.place.weight[20:] += 1
    assert torch.allclose(model(x), before, atol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "first", "end"),
    [(second_look.warmed_linear, 1 / 11, 0.0), (second_look.falling, 1.0, 0.0), (second_look.in_steps, 1.0, 0.01),
     (second_look.exponential, 1.0, 0.02)],
)  # fmt: skip
def test_schedules_go_from_first_to_end(schedule, first, end):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), 1.0)
    scheduler = schedule(optimizer, 100)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(100):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert (rates[0], rates[-1]) == (pytest.approx(first), pytest.approx(end))
    assert max(rates) == pytest.approx(1.0, abs=1e-9) and F.relu(-torch.tensor(rates)).max() == 0

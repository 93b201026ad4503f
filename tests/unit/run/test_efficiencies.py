"""Effective samples of one sample, where the learning rate lags behind the batch."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.hyperparameters import HyperparameterScaler
from adaptbs.hyperparameters.lookup import traits_of
from adaptbs.run.efficiencies import SampleEfficiencies
from adaptbs.run.rules import ByCutSize
from adaptbs.types import Scale


class Run:
    """What a run knows: a sample of any batch brings half, and the learning rate's factor is k."""

    def __init__(self, base: int = 64, reference: int = 64, longest: float = 100.0) -> None:
        self._base, self._longest = base, longest
        self.scales: ByCutSize[Scale] = ByCutSize(self._scale)
        self.efficiencies = SampleEfficiencies(self._half, reference, self.scales)

    def _half(self, cut_size: int) -> float:
        return 0.5

    def _scale(self, cut_size: int) -> Scale:
        return Scale(cut_size / self._base, cut_size / self._base, self._longest)


def scaler_at(lr_factor: float) -> HyperparameterScaler:
    """Of SGD, after steps that have raised the learning rate by this factor."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
    scaler = HyperparameterScaler(optimizer, traits_of(optimizer))
    for _ in range(200):
        scaler.scale(optimizer.param_groups, {"lr"}, k=8.0, lr_factor=lr_factor, longest=100.0)
        scaler.restore()
    return scaler


def test_a_step_counts_for_no_more_than_its_learning_rate():
    run = Run()
    assert run.efficiencies[512] == 0.5, "nothing limits the rate"
    run.efficiencies.follow(scaler_at(2.0))
    assert run.efficiencies[512] == pytest.approx(2 * 64 / 512)
    assert run.efficiencies[128] == 0.5, "by the noise scale, which says less"


def test_a_step_counts_as_one_of_the_reference_at_least():
    run = Run()
    run.efficiencies.follow(scaler_at(0.25))
    assert run.efficiencies[512] == pytest.approx(64 / 512)


def test_what_a_run_before_was_limited_to_does_not_count_where_nothing_limits_this_one():
    """As where a run is resumed with another lr_scaling=, or its hyperparameters are held from here on."""
    run = Run(longest=math.inf)
    run.efficiencies.follow(scaler_at(2.0))
    assert run.efficiencies[512] == 0.5


def test_the_factor_counts_from_the_reference():
    """At 64 the factor is 1/4, where the hyperparameters are stated for 256: at 256 a step is worth up to four."""
    run = Run(base=256)
    run.efficiencies.follow(scaler_at(1.0))
    assert run.efficiencies[512] == 0.5
    assert run.efficiencies[1024] == pytest.approx(4 * 64 / 1024)


@pytest.mark.parametrize(("optimizer_class", "limited"), [(torch.optim.SGD, True), (torch.optim.Adam, False)])
def test_progress_of_sgd_goes_by_the_rates_that_its_steps_had(optimizer_class, limited):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = optimizer_class(model.parameters(), 1e-3)
    data = TensorDataset(torch.randn(4096, 4), torch.randn(4096, 1))
    loader = AdaptiveDataLoader(data, 16, model=model, optimizer=optimizer, epochs=2, step_time=(1.0, 1e-4))
    controller, rates, beyond = loader.training_run.controller, [1e-3], []
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    for _ in loader.epochs(2):
        for xb, yb in loader:
            size = controller.batch_size
            beyond.append(controller.sample_efficiencies[size] * size / 16 > 1.0001 * rates[-1] / 1e-3)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(xb), yb).backward()
            optimizer.step()
    assert max(rates) > 1.5e-3, "the batch has grown"
    assert (sum(beyond) > 1) != limited, "the first larger batch comes before any rate is limited"

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import mse_loss

from adaptbs.gradients.coupling import LOOKS
from adaptbs.gradients.meter import HALVES, IN_STEP, NoiseMeter
from adaptbs.gradients.terms import Unsupported
from adaptbs.model.batch_loss import BatchLoss
from adaptbs.types import COUPLED
from tests.helpers.cuda import FakeCuda

BATCH = (torch.randn(8, 4), torch.randn(8, 1))


def step(meter: NoiseMeter, model: nn.Module, batch=BATCH, samples: int | None = None, loss=None):
    """The measurement of one step of a loop that trains by `loss`."""
    rows = len(batch[0])
    samples = rows if samples is None else samples
    if meter.in_step:
        meter.look(batch, samples)
    made = meter.begin(batch, samples, [samples])
    if not meter.is_armed:
        return made
    model.zero_grad()
    (loss(model, batch) if loss else mse_loss(model(batch[0]), batch[1])).backward()
    return meter.end(samples, [samples])


def meter_of(model: nn.Module, **arguments) -> NoiseMeter:
    return NoiseMeter(model, BatchLoss(mse_loss), **arguments)


def test_a_model_is_measured_in_its_step():
    model = nn.Linear(4, 1)
    made = step(meter_of(model), model)
    assert (made.source, made.norms.small_size, made.norms.large_size) == ("in step", 1, 8)
    assert not model._forward_hooks


def test_steps_that_tell_nothing_now_and_then_are_warned_of_once(caplog):
    model = nn.Linear(4, 1)
    meter = meter_of(model)

    def clipped_between_passes() -> None:
        meter.begin(BATCH, 16, [8])
        for _ in range(2):
            mse_loss(model(BATCH[0]), BATCH[1]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        assert meter.end(16, [8], batches=2) is None

    for _ in range(3):
        for _ in range(4):
            model.zero_grad()
            clipped_between_passes()
        assert step(meter, model) is not None
    assert [r.levelname for r in caplog.records if "a step was not measured" in r.message].count("WARNING") == 1


def test_a_step_of_one_example_is_not_measured_and_the_next_one_is():
    model = nn.Linear(4, 1)
    meter = meter_of(model)
    assert step(meter, model, (BATCH[0][:1], BATCH[1][:1])) is None
    assert not meter.is_armed and not model._forward_hooks
    assert step(meter, model, (BATCH[0][:2], BATCH[1][:2])).norms.large_size == 2


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


class Scaled(nn.Module):
    """Has a parameter of its own beside its layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.ones(4)), nn.Linear(4, 1)

    def forward(self, x):
        return self.layer(self.scale * x)


class FromOutside(nn.Module):
    """Uses a layer's weight without the layer, which only its gradient shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x):
        return self.layer(x) + F.linear(x, self.layer.weight)


@pytest.mark.parametrize(
    ("make", "why"), [(with_batch_norm, "BatchNorm1d '1'"), (Scaled, "Scaled"), (FromOutside, "layer.weight")]
)
def test_anything_else_by_halves_and_the_reason_is_logged_once(make, why, caplog):
    model = make()
    meter = meter_of(model)
    with caplog.at_level(logging.INFO, "adaptbs"):
        made = [step(meter, model) for _ in range(3)]
    assert made[1].source == made[2].source == "halves"
    assert why in made[2].why
    assert caplog.text.count(why) == 1


def penalized(model, batch):
    return mse_loss(model(batch[0]), batch[1]) + model.weight.square().sum()


def test_a_penalty_that_begins_later_is_found_at_once_on_a_cpu():
    model = nn.Linear(4, 1)
    meter = meter_of(model)
    assert step(meter, model).norms.small.isfinite()
    assert step(meter, model, loss=penalized) is None
    made = step(meter, model, loss=penalized)
    assert made.source == HALVES and "weight is not the sum" in made.why


def test_a_penalty_that_begins_later_makes_the_norms_nan_on_a_device_until_it_is_read():
    with FakeCuda() as cuda:
        model, batch = cuda.place(nn.Linear(4, 1)), tuple(map(cuda.tensor, BATCH))
        meter = meter_of(model)
        assert step(meter, model, batch).norms.small.isfinite()
        for _ in range(2):
            made = step(meter, model, batch, loss=penalized)
            assert made.source == IN_STEP and made.norms.small.isnan()
        assert "weight is not the sum" in made.read_caveat()
        made = step(meter, model, batch, loss=penalized)
        assert made.source == HALVES and "weight is not the sum" in made.why


@pytest.mark.parametrize("make", [with_batch_norm, Scaled, FromOutside])
def test_without_a_loss_the_error_says_why_it_is_needed(make):
    model = make()
    meter = NoiseMeter(model, None)
    with pytest.raises(Unsupported, match="cannot be measured in the step that trains"):
        step(meter, model)
    assert not meter.is_armed


@pytest.mark.parametrize(("choice", "source"), [("halves", "halves"), ("in_step", "in step")])
def test_what_is_asked_for_is_done(choice, source):
    model = nn.Linear(4, 1)
    assert step(meter_of(model, choice=choice), model).source == source


def test_what_is_asked_for_and_cannot_be_is_an_error_that_says_what_to_do():
    model = with_batch_norm()
    with pytest.raises(Unsupported, match=r"source='in_step' .* BatchNorm1d .* Use source='auto'"):
        step(meter_of(model, choice="in_step"), model)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_short_batch_is_not_measured_as_batch_norm_refuses_a_half_of_one_sample(rows):
    model = with_batch_norm()
    meter = meter_of(model, choice="halves")
    assert step(meter, model).norms.large_size == 8
    assert step(meter, model, (BATCH[0][:rows], BATCH[1][:rows])) is None
    assert step(meter, model).norms.large_size == 8


def test_batch_norm_in_evaluation_mode_does_not_stand_in_the_way_until_it_trains():
    model = nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Linear(4, 1)).eval()
    meter = meter_of(model)
    assert step(meter, model).source == "in step"
    model[0].weight = nn.Parameter(torch.ones(4))
    model.train()
    assert step(meter, model).source == "halves"


def test_a_layer_unfrozen_later_is_counted():
    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 1))
    meter = meter_of(model)
    frozen = float(step(meter, model).norms.small)
    model.requires_grad_(True)
    assert float(step(meter, model).norms.small) > frozen


def test_a_step_in_which_no_layer_is_called_is_not_taken_for_a_measurement():
    model = nn.Linear(4, 1)
    meter = meter_of(model)

    def functional(model, batch):
        return mse_loss(F.linear(batch[0], model.weight, model.bias), batch[1])

    assert step(meter, model, loss=functional) is None
    made = step(meter, model, loss=functional)
    assert made.source == "halves"
    assert "outside its own layer" in made.why


def test_a_step_in_which_nothing_is_seen_at_all_three_times_in_a_row():
    model = nn.Linear(4, 1)
    meter = meter_of(model)
    for _ in range(3):
        assert meter.begin(BATCH, 8, [8]) is None
        assert meter.end(8, [8]) is None
    made = step(meter, model)
    assert made.source == "halves"
    assert "not called" in made.why


def test_the_optimizers_parameters_are_the_ones_that_count():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    whole, head = step(meter_of(model), model), step(meter_of(model, parameters=model[1].parameters), model)
    only = [p.grad.square().sum() for p in model[1].parameters()]
    assert float(head.norms.large) == pytest.approx(float(sum(only)))
    assert float(whole.norms.large) > float(head.norms.large)


@pytest.mark.parametrize(("half", "caveat"), [(31, "BatchNorm over 31"), (32, None)])
def test_batch_norm_over_few_samples_is_a_caveat(half, caveat):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    batch = torch.randn(2 * half, 4), torch.randn(2 * half, 1)
    assert step(meter_of(model), model, batch).read_caveat() == caveat


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


def random_sum(model: nn.Module, batch) -> torch.Tensor:
    """The sum of a VAE, whose code is drawn at each call."""
    code = model(batch[0])
    return (code + torch.randn_like(code) - batch[0][:, :2]).square().sum()


GENERATOR = torch.Generator().manual_seed(0)


def random_sum_of_its_own(model: nn.Module, batch) -> torch.Tensor:
    code = model(batch[0])
    return (code + torch.randn(code.shape, generator=GENERATOR) - batch[0][:, :2]).square().sum()


def diffusing(model: nn.Module, batch) -> torch.Tensor:
    """A mean that changes severalfold with what is drawn."""
    noise, time = torch.randn(len(batch[0]), 2), torch.rand(len(batch[0]), 1)
    return ((model(batch[0]) - noise) / (time + 0.1)).square().mean()


def noisily_contrastive(model: nn.Module, batch) -> torch.Tensor:
    a, b = (F.normalize(model(batch[0] + 0.1 * torch.randn_like(batch[0])), dim=1) for _ in range(2))
    return F.cross_entropy(a @ b.T / 0.5, torch.arange(len(a)))


def mean_over_pairs(model: nn.Module, batch) -> torch.Tensor:
    code = model(batch[0])
    return (code[:, None] - code[None]).square().mean()


def against_a_memory(model: nn.Module, batch) -> torch.Tensor:
    """Negatives of earlier batches alone, as MoCo has them."""
    code, memory = F.normalize(model(batch[0]), dim=1), torch.eye(2).repeat(8, 1)
    return F.cross_entropy(torch.cat([torch.ones(len(code), 1), code @ memory.T], 1), torch.zeros(len(code)).long())


def penalised(model: nn.Module, batch) -> torch.Tensor:
    return model(batch[0]).square().mean() + sum(p.square().sum() for p in model.parameters())


def sum_and_penalty(model: nn.Module, batch) -> torch.Tensor:
    """Another loss in larger batches, in which the penalty counts for less."""
    return model(batch[0]).square().sum() + sum(p.square().sum() for p in model.parameters())


COUPLING = {
    mean_over_pairs: False, against_a_memory: False, penalised: False, sum_and_penalty: True,
    contrastive: True, noisily_contrastive: True, weighted: False, ignoring: False, summed: False, random_sum: False,
    random_sum_of_its_own: False, diffusing: False,
}  # fmt: skip


@pytest.mark.parametrize(("loss", "coupled"), COUPLING.items())
@pytest.mark.parametrize("choice", ["halves", "auto"])
@pytest.mark.parametrize("layer", [nn.Identity, lambda: nn.Dropout(0.5), lambda: nn.BatchNorm1d(16)])
def test_a_loss_that_couples_samples_is_noticed_and_weights_are_not_mistaken_for_it(loss, coupled, layer, choice):
    found, made = [], None
    for seed in range(10):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 16), layer(), nn.Linear(16, 2))
        meter = NoiseMeter(model, BatchLoss(batch_loss=loss), choice=choice)
        for _ in range(LOOKS + 1):  # the first may show only that the model cannot be measured in its step
            made = step(meter, model, (torch.randn(64, 4), torch.zeros(64)), loss=loss) or made
            torch.rand(1000)  # what a loop draws in its step
        assert all(m.training for m in model.modules())
        found.append(made.read_caveat() == COUPLED)
    assert found == [coupled] * 10


@pytest.mark.parametrize(("loss", "sums"), [(summed, True), (random_sum, True), (diffusing, False), (weighted, False)])
def test_a_sum_is_known_by_its_first_batches_and_measured_as_if_it_were_a_mean(loss, sums):
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    meter = NoiseMeter(model, BatchLoss(batch_loss=loss))
    batch = torch.randn(64, 4), torch.zeros(64)
    before = [step(meter, model, batch, loss=loss) for _ in range(LOOKS)][-1].norms
    assert meter.sums is sums
    twice = tuple(torch.cat([part, part]) for part in batch)
    after = step(meter, model, twice, loss=loss).norms
    assert after.large_size == 128
    if sums:  # twice the samples have four times the squared gradient of their sum
        assert float(after.large) == pytest.approx(float(before.large), rel=1e-4 if loss is summed else 0.6)


@pytest.mark.parametrize(("loss", "waits"), [({"loss_func": nn.MSELoss()}, 0), ({"loss_func": mse_loss}, 1)])
def test_the_kind_of_loss_is_read_once_and_only_where_the_loss_does_not_say_it(loss, waits):
    with FakeCuda() as cuda:
        model = cuda.place(nn.Linear(4, 1))
        batch = cuda.tensor(torch.randn(32, 4)), cuda.tensor(torch.randn(32, 1))
        meter = NoiseMeter(model, BatchLoss(**loss))
        for _ in range(LOOKS + 2):
            step(meter, model, batch)
        assert meter.in_step and not meter.looks
        assert len([line for _, line in cuda.waits.found if "coupling.py" in line]) == waits


def test_rows_that_are_not_the_samples_are_a_caveat():
    model = nn.Linear(4, 1)
    assert step(meter_of(model), model, samples=5).read_caveat() == "8 rows of 5 samples"
    assert step(meter_of(model, choice="halves"), model, samples=5).read_caveat() == "8 rows of 5 samples"


def test_a_loss_that_asks_for_gradients_itself_can_be_measured():
    def penalty(model: nn.Module, batch) -> torch.Tensor:
        x = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return (slope.norm(dim=1) - 1).square().mean()

    model, batch = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), (torch.randn(32, 4), torch.zeros(32))
    meter = NoiseMeter(model, BatchLoss(batch_loss=penalty))
    step(meter, model, batch, loss=penalty)
    made = step(meter, model, batch, loss=penalty)
    assert made.source == "halves"
    assert float(made.norms.trace) > 0


def test_coupled_samples_are_said_even_where_rows_are_not_the_samples():
    torch.manual_seed(0)
    model = nn.Linear(4, 16)
    meter = NoiseMeter(model, BatchLoss(batch_loss=contrastive), choice="halves")
    for _ in range(LOOKS):
        made = step(meter, model, (torch.randn(64, 4), torch.zeros(64)), samples=32)
    assert made.read_caveat() == COUPLED


BY_GROUP = {"group 0": lambda parameters: list}
GIVEN = [({"choice": "halves"}, HALVES), ({"views": BY_GROUP}, HALVES), ({"choice": "in_step"}, IN_STEP)]


@pytest.mark.parametrize(("arguments", "source"), GIVEN)
def test_a_resumed_run_measures_as_its_own_arguments_say(arguments, source):
    model = nn.Linear(4, 1)
    saved, resumed = meter_of(model), meter_of(model, **arguments)
    resumed.load_state_dict(saved.state_dict())
    assert step(resumed, model).source == source


@pytest.mark.parametrize(("arguments", "source"), GIVEN)
def test_and_not_as_those_of_the_saved_run_said(arguments, source):
    model = nn.Linear(4, 1)
    saved, resumed = meter_of(model, **arguments), meter_of(model)
    resumed.load_state_dict(saved.state_dict())
    assert step(resumed, model).source == IN_STEP


def test_what_the_saved_run_had_found_out_is_known():
    model = with_batch_norm()
    saved, resumed = meter_of(model), meter_of(model)
    step(saved, model)
    resumed.load_state_dict(saved.state_dict())
    assert not resumed.in_step

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from adaptbs import AdaptiveDataLoader, NoiseScale, bs_find
from adaptbs.decision.policy import CRITICAL_OF_SGD
from adaptbs.finder.blocks import Measured
from adaptbs.finder.find import copy_of
from adaptbs.finder.sizes import suggest

ONES, TWOS, THREES = (torch.full((2, 1), float(value)) for value in (1, 2, 3))


def product() -> nn.Module:
    """w x with w = 2."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    return model


def mean_output(model, x):
    """Its gradient is the mean of x."""
    return model(x).mean()


def half_square(model, x):
    """Its gradient, where x is 1, is w."""
    return model(x).square().mean() / 2


def find(*batches, loss=mean_output, **arguments):
    return bs_find(product(), None, list(batches), batch_loss=loss, **{"n_batch": 2, **arguments})


def test_one_block_is_pooled_and_has_no_limits():
    # gradients 1 and 3 of 2 samples each: mean square 5, square of the mean 4, so |G|^2 = 3 and tr(Sigma) = 4
    found = find(ONES, THREES)
    assert (found.curve[0].grad_sq, found.curve[0].trace) == pytest.approx((3, 4))
    assert found.noise_scale == pytest.approx(4 / 3)
    assert (found.low, found.high, found.batch_size) == (0, math.inf, None)


def test_blocks_that_agree_give_a_size_to_use():
    found = find(ONES, THREES, ONES, THREES)
    assert (found.low, found.noise_scale, found.high) == pytest.approx((4 / 3,) * 3)
    assert found.batch_size == 2  # (.2 * 4/3 + 2)/.8 = 2.8 samples keep .8
    assert found.samples == (4, 8)


@pytest.mark.parametrize(("beta", "grad_sq"), [(1, (3 + 4) / 2), (0.5, (0.5 * 3 + 4) / 1.5), (0, 4)])
def test_earlier_blocks_fade_by_beta(beta, grad_sq):
    assert find(ONES, THREES, TWOS, TWOS, beta=beta).curve[1].grad_sq == pytest.approx(grad_sq)


def test_num_it_is_how_many_batches_are_read():
    batches = iter([ONES, THREES, ONES, THREES, ONES])
    bs_find(product(), None, batches, batch_loss=mean_output, n_batch=2, num_it=4)
    assert len(list(batches)) == 1


def test_a_short_last_batch_is_left_out():
    found = find(ONES, THREES, TWOS[:1], n_batch=3)
    assert found.curve[0].grad_sq == pytest.approx(3)
    assert found.samples == (5,)


def test_without_a_learning_rate_the_weights_stay_as_they_are():
    found = find(ONES, ONES, ONES, ONES, loss=half_square, beta=0)
    assert [n.grad_sq for n in found.curve] == pytest.approx([4, 4])


def test_with_one_the_same_batches_are_trained_on_after_each_block():
    # two steps at .5 take w from 2 to 1/2
    found = find(ONES, ONES, ONES, ONES, loss=half_square, beta=0, lr=0.5)
    assert [n.grad_sq for n in found.curve] == pytest.approx([4, 0.25])


def test_a_copy_of_the_optimizer_trains():
    model = product()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e9, weight_decay=1.0)
    found = bs_find(
        model, None, [ONES] * 4, batch_loss=half_square, n_batch=2, beta=0, lr=0.5, optimizer=optimizer
    )  # weight decay doubles the gradient: one step at .5 takes w to 0
    assert [n.grad_sq for n in found.curve] == pytest.approx([4, 0])
    assert optimizer.param_groups[0]["lr"] == 1e9
    assert not optimizer.state


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))


@pytest.fixture
def data() -> TensorDataset:
    return TensorDataset(torch.randn(64, 1), torch.randn(64, 1))


def states(model, *generators):
    return [*(v.tolist() for v in model.state_dict().values()), model.training, torch.get_rng_state().tolist(),
            *(g.get_state().tolist() for g in generators)]  # fmt: skip


@pytest.mark.parametrize("own_generator", [True, False])
def test_model_random_state_and_loader_are_left_as_found(model, data, own_generator):
    generator = torch.Generator()
    loader = DataLoader(data, batch_size=8, shuffle=True, generator=generator if own_generator else None)
    model.eval()
    before = states(model, generator)
    bs_find(model, mse_loss, loader, n_batch=2, lr=0.1)
    assert states(model, generator) == before


def test_also_after_ctrl_c(model, data):
    loader = DataLoader(data, batch_size=8, shuffle=True)
    before = states(model)
    calls = iter(range(100))

    def loss(model, batch):
        if next(calls) == 9:  # the second block is being measured, on weights that have moved
            raise KeyboardInterrupt
        return mse_loss(model(batch[0]), batch[1])

    with pytest.raises(KeyboardInterrupt):
        bs_find(model, None, loader, batch_loss=loss, n_batch=2, lr=0.1)
    assert states(model) == before


def test_an_adaptive_loader_does_not_take_it_for_training(model, data):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = AdaptiveDataLoader(data, 8, model=model, optimizer=optimizer, loss_func=mse_loss, epochs=1)
    bs_find(model, mse_loss, loader, n_batch=4, lr=0.1)
    assert len(loader.history) == 1
    assert sum(len(x) for x, _ in loader) == 64


def measured(last: NoiseScale, samples: int) -> Measured:
    return Measured([last], [samples], batch_size=64, block=[], step_time=None)


def test_the_suggestion_is_what_the_controller_would_aim_at():
    last = NoiseScale(grad_sq=1.0, trace=1000.0, low=400.0, high=2000.0, cautious=1000.0, measurements=9)
    found = suggest(measured(last, 5000), critical=1)
    assert found.batch_size == 256  # 330 samples keep .8 of the progress per sample, at a critical batch of 1,000
    assert (found.noise_scale, found.low, found.high) == (1000, 400, 2000)
    assert suggest(measured(last, 50_000), critical=4).batch_size == 1024, "1,080 keep .8 at 4,000"


def test_every_suggestion_is_in_the_named_tuple():
    last = NoiseScale(grad_sq=1.0, trace=1000.0, low=400.0, high=2000.0, cautious=1000.0, measurements=9)

    def half(found):
        return found.noise_scale / 2

    found = suggest(measured(last, 5000), critical=1, fits=128).suggested_by(half)
    assert found.suggestions._asdict() == {"useful": 256, "fastest": None, "fits": 128, "half": 500.0}
    assert found.batch_size == 128, "a suggestion more does not change what is to be used"
    labels = [line.get_label() for line in found.plot().axes[1].lines]
    assert {"use batch size 128", "useful: 256", "half: 500"} <= set(labels)


def test_functions_whose_names_are_no_field_or_taken_are_numbered():
    last = NoiseScale(grad_sq=1.0, trace=1000.0, low=400.0, high=2000.0, cautious=1000.0, measurements=9)

    def useful(found):
        return 3.0

    def _own(found):
        return 4.0

    found = suggest(measured(last, 5000), critical=1).suggested_by(lambda found: 1.0, partial(useful), useful, _own)
    assert found.suggested_by(lambda found: 5.0).suggestions._asdict() == {
        "useful": 256, "fastest": None, "fits": None,
        "suggestion_1": 1.0, "suggestion_2": 3.0, "suggestion_3": 3.0, "suggestion_4": 4.0, "suggestion_5": 5.0,
    }  # fmt: skip
    assert "suggestion_1: 1" in [line.get_label() for line in found.plot().axes[1].lines]
    with pytest.raises(TypeError, match="suggest_funcs='valley'"):
        found.suggested_by("valley")


@pytest.mark.parametrize(
    ("batches", "arguments", "blocks"),
    [
        (8, {}, 4), (13, {}, 4), (79, {}, 5), (80, {}, 4), (200, {}, 10), (200, {"num_it": 12}, 4),
        (40, {"n_batch": 20}, 2), (6, {}, 3),
    ],
)  # fmt: skip
def test_a_short_loader_has_four_blocks_if_it_can(batches, arguments, blocks):
    loader = [ONES, THREES] * (batches // 2) + [ONES] * (batches % 2)
    found = bs_find(product(), None, loader, batch_loss=mean_output, **arguments)
    assert found.curve[-1].measurements == blocks
    assert (found.doubt == "few measurements") == (blocks < 4)
    assert (f"{blocks} of 4 blocks of batches: lower" in str(found)) == (blocks < 4)


def test_where_the_length_is_not_known_a_block_has_twenty_batches():
    found = bs_find(product(), None, iter([ONES, THREES] * 25), batch_loss=mean_output)
    assert found.curve[-1].measurements == 3
    assert str(found).endswith("lower the loader's batch size or n_batch=, or raise num_it=)")


def test_a_gradient_lost_in_noise_suggests_nothing():
    lost = NoiseScale(grad_sq=-1.0, trace=2000.0, low=0.0, high=math.inf, cautious=0.0, measurements=9)
    found = suggest(measured(lost, 5000), critical=1)
    assert found.noise_scale is None
    assert found.batch_size is None


def test_an_optimizer_copy_has_the_state_but_not_the_hooks():
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    weight.grad = torch.ones(1)
    optimizer.step()
    twin = copy_of(optimizer, lr=0.2)
    twin.step()
    assert (twin.param_groups[0]["lr"], optimizer.param_groups[0]["lr"]) == (0.2, 0.1)
    assert twin.state[weight]["step"] == 2
    assert optimizer.state[weight]["step"] == 1


class WithSettings(torch.optim.SGD):
    """Has settings beside those of its groups, and an optimizer inside."""

    def __init__(self, params, inner=None):
        super().__init__(params, lr=0.1)
        self.scale, self.count, self.inner = 2.0, 0, inner

    def step(self, closure=None):
        self.count += 1
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.sub_(self.param_groups[0]["lr"] * self.scale * p.grad)
        if self.inner is not None:
            self.inner.step()


def test_an_optimizer_copy_has_the_settings_of_its_class_but_shares_no_optimizer_inside():
    model = product()
    optimizer = WithSettings(model.parameters())
    found = bs_find(model, None, [ONES] * 4, batch_loss=mean_output, n_batch=2, lr=0.1, optimizer=optimizer)
    assert found.samples == (4, 8) and model.weight.item() == 2.0
    assert (optimizer.count, optimizer.scale) == (0, 2.0)
    twin = copy_of(WithSettings(model.parameters(), torch.optim.SGD(model.parameters(), lr=1.0)), 0.1)
    assert not hasattr(twin, "inner") and twin.scale == 2.0


@pytest.mark.parametrize("lr", [None, 0.1])
def test_it_leaves_no_trace_and_steps_no_optimizer_of_the_users(model, data, lr):
    loader = DataLoader(data, batch_size=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    stepped = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(stepped.append)
        parameter.grad = torch.ones_like(parameter)
    before = states(model), [p.grad.tolist() for p in model.parameters()]
    found = bs_find(model, mse_loss, loader, n_batch=4, optimizer=optimizer, lr=lr)
    assert found.step_time is not None and found.step_time(64) > 0
    assert (states(model), [p.grad.tolist() for p in model.parameters()]) == before
    assert stepped == []
    assert not optimizer.state and optimizer.param_groups[0]["lr"] == 0.1


def test_its_trade_off_is_relative_to_the_loaders_batch():
    found = find(ONES, THREES, ONES, THREES)  # B_simple is 4/3, the batch 2
    table = found.trade_off()
    assert (table.base_batch_size, table.phi) == (2, found.noise_scale)
    assert table.to_dict()["batch_size"] == [1, 2, 4, 8]  # 8 samples were seen
    critical = CRITICAL_OF_SGD * 4 / 3
    assert table.to_dict()["steps"] == pytest.approx([(1 + critical / b) / (1 + critical / 2) for b in (1, 2, 4, 8)])
    assert found.trade_off(base=4).to_dict()["steps"][2] == 1


def test_a_model_whose_larger_steps_fail_has_no_step_time_but_a_trade_off(model, data):
    def up_to_three(model, batch):
        if len(batch[0]) > 3:
            raise RuntimeError("out of memory")
        return mse_loss(model(batch[0]), batch[1])

    found = bs_find(model, None, DataLoader(data, batch_size=3), batch_loss=up_to_three, n_batch=4)
    assert found.step_time is None
    table = found.trade_off()
    assert table.to_dict()["time"] == [None] * len(table.rows)
    assert repr(table).splitlines()[2].split() == ["batch", "size", "steps", "samples"]


def test_printing_it_tells_of_the_noise_scale_only():
    found = find(ONES, THREES)
    assert repr(found) == f"BatchSizeSuggestion(noise_scale={found.noise_scale}, low=0.0, high=inf, batch_size=None)"


def test_a_picture_of_it():
    assert len(find(ONES, THREES).plot().axes) == 3

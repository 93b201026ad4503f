"""The pure parts of the third last look in benchmarks/quality/untuned/."""

import math

import pytest
import torch
from scipy.stats import nbinom
from torch import nn
from torch.nn import functional as F

from benchmarks.quality.untuned import cells, tables, third_data, third_look, third_models
from benchmarks.quality.untuned.data import PADDING
from benchmarks.quality.untuned.third_data import LETTERS, NODES, NONE


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_image_is_placed_where_it_is_told():
    images = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(2, 1, 2, 2) * torch.tensor([1.0, 10.0]).reshape(2, 1, 1, 1)
    canvas = third_data.placed(images, torch.tensor([0, 1]), torch.tensor([1, 0]), 3, 3)
    assert canvas[0, 0].tolist() == [[1, 1, 2], [1, 3, 4], [1, 1, 1]]
    assert canvas[1, 0].tolist() == [[1, 1, 1], [10, 20, 1], [30, 40, 1]]


def test_overlaid_images_show_both_digits():
    digits = torch.arange(200) % 10
    images = torch.zeros(200, 1, 14, 14)
    images[:, 0, 7, 7] = digits + 1.0
    x, there = third_data.overlaid(images, digits, seeded())
    assert x.shape == (200, 1, 20, 20) and set(there.sum(1).tolist()) == {1.0, 2.0}
    assert torch.equal(x.flatten(1).amax(1) - 1, (there * torch.arange(10)).amax(1))


def test_a_line_holds_its_digits_in_order():
    digits = torch.arange(10)
    images = torch.zeros(10, 1, 14, 14)
    images[:, 0, 7, 7] = digits + 1.0
    x, y = third_data.lines(images, digits, 300, seeded())
    assert x.shape == (300, 1, 14, third_data.LINE) and set((y != NONE).sum(1).tolist()) == {2, 3, 4}
    for line, target in zip(x[:, 0, 7], y, strict=True):
        assert torch.equal(line[line > 0] - 1, target[target != NONE].float())


def test_points_lie_where_the_image_is_bright():
    images = torch.full((2, 1, 14, 14), -0.1307 / 0.3081)  # black
    images[0, 0, 0, 0] = images[1, 0, 13, 6] = 2.8
    points = third_data.cloud(images, seeded())
    low, high = torch.tensor([[0.0, 0], [6, 13]]) / 7 - 1, torch.tensor([[1.0, 1], [7, 14]]) / 7 - 1
    assert (((points >= low[:, None]) & (points <= high[:, None])).all(2).float().mean(1) > 0.95).all()


def test_garbled_letters_by_hand():
    letters = torch.tensor([[5, 6, 7, 8]])
    uniform, strangers = torch.tensor([[0.5, 0.05, 0.15, 0.5]]), torch.tensor([[1, 2, 3, 4]])
    x, y = third_data.garbled(letters, uniform, strangers, 9)
    assert x.tolist() == [[5, 3, 8, 9, 10, 5, 6, 7]] and y is letters


def test_garbling_is_new_at_each_fetch():
    data = third_data.Garbled(torch.randint(0, 30, (64, LETTERS)), 30)
    first, second = data.__getitems__(range(64)), data.__getitems__(range(64))
    assert torch.equal(first[1], second[1]) and not torch.equal(first[0][:, :LETTERS], second[0][:, :LETTERS])
    assert torch.equal(first[0][:, LETTERS:], second[0][:, LETTERS:])


def test_nodes_of_a_group_are_joined_more_often():
    x, group = third_data.graphs(2000, seeded())
    joined, known = x.split((NODES, 3), 2)
    same = (group[:, :, None] == group[:, None]) & ~torch.eye(NODES, dtype=torch.bool)
    other = group[:, :, None] != group[:, None]
    assert torch.equal(joined, joined.transpose(1, 2)) and joined.diagonal(dim1=1, dim2=2).sum() == 0
    assert joined[same].mean().item() == pytest.approx(0.6, abs=0.01)
    assert joined[other].mean().item() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(known[:, :3].argmax(2), group[:, :3]) and known[:, 3:].sum() == 0


def test_those_on_the_hill_die_sooner():
    x, seen = third_data.lifetimes(50_000, seeded())
    centre, edge = (seen[near] for near in (x[:, :2].square().sum(1) < 0.1, x[:, :2].square().sum(1) > 1))
    assert centre[:, 0].float().mean() + 1 < edge[:, 0].float().mean() and seen[:, 0].max() == 11
    # Death comes at a rate of up to 5, leaving at .5: 5/5.5 and 1/1.5 are the limits.
    assert 0.85 < centre[:, 1].float().mean() < 0.91 and 0.65 < edge[:, 1].float().mean() < 0.75


def test_a_film_is_beside_another_of_the_same_person():
    people, films = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[5, 0], [6, 7], [8, 0]])
    data = third_data.Preferred(torch.tensor([[0, 1], [1, 2]]), people, films)
    x, ones = data.beside(torch.tensor([[0, 1], [1, 2]]), torch.tensor([0.0, 0.5]))
    assert x.tolist() == [[[1, 2, 6, 7], [1, 2, 5, 0]], [[3, 4, 8, 0], [3, 4, 6, 7]]] and ones.tolist() == [1, 1]
    assert data.__getitems__([0])[0].shape == (1, 2, 4)


def test_a_factorization_machine_weighs_each_two_features():
    model = third_models.FactorizationMachine(5, 2)
    with torch.no_grad():
        model.weights.weight[:, 0] = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    v = model.factors.weight
    first, second = 1 + 2 + 3 + v[1] @ v[2] + v[1] @ v[3] + v[2] @ v[3], 1 + 4 + v[1] @ v[4]
    found = model(torch.tensor([[[1, 2, 3], [1, 4, PADDING]]]))
    assert found.item() == pytest.approx((first - second).item(), rel=1e-5)


def test_losses_by_hand():
    logits = torch.tensor([[0.0, math.log(3), 9.0]]).expand(2, 3)  # survived with 1/2, 1/4
    lived, died = torch.tensor([[1, 0], [1, 1]]).split(1)
    assert third_models.hazards(logits[:1], lived).item() == pytest.approx(math.log(2))
    assert third_models.hazards(logits[:1], died).item() == pytest.approx(math.log(2) + math.log(4 / 3), rel=1e-5)
    sure = F.one_hot(torch.tensor([[3, 0, 0, 8]]), 11) * 50.0
    assert third_models.ctc(sure, torch.tensor([[2, 7, NONE, NONE]])).item() == pytest.approx(0, abs=1e-5)
    even = torch.zeros(1, 2, 11)  # a digit in two steps: alone, before a blank and behind one
    assert third_models.ctc(even, torch.tensor([[4, NONE]])).item() == pytest.approx(-math.log(3 / 121), rel=1e-5)
    mean, spread, counts = 3.0, 0.5, torch.tensor([0.0, 2.0, 9.0])
    output = torch.tensor([math.log(mean), math.log(spread)]).expand(3, 2)
    expected = -nbinom.logpmf(counts, 1 / spread, 1 / (1 + mean * spread)).mean()
    assert third_models.negative_binomial(output, counts).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "x", "shape"),
    [
        (third_models.ConvNext, torch.randn(3, 1, 20, 20), (3, 10)),
        (lambda: third_models.Corrector(30), torch.randint(0, 30, (3, 2 * LETTERS)), (3, LETTERS, 30)),
        (third_models.GraphNet, third_data.graphs(3, seeded())[0], (3, NODES, 3)),
        (third_models.PointNet, torch.randn(3, 9, 2), (3, 10)),
        (lambda: third_models.Llama(50), torch.randint(0, 50, (3, 16)), (3, 16, 50)),
        (lambda: third_models.FactorizationMachine(50), torch.randint(0, 50, (3, 2, 7)), (3,)),
        (third_models.LineReader, torch.randn(3, 1, 14, 64), (3, 16, 11)),
        (lambda: third_models.Experts(10, 12), torch.randn(3, 10), (3, 12)),
        (third_models.Painter, torch.randn(3, 2), (3, 3)),
        (third_models.TextConvolutions, torch.randint(1, 4000, (3, 32)), (3, 2)),
    ],
)
def test_a_network_takes_each_example_for_itself(make, x, shape):
    model = make().eval()
    assert model(x).shape == shape and torch.allclose(model(x)[:1], model(x[:1]), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "x", "first"),
    [
        (lambda: third_models.Llama(50), torch.randint(0, 50, (2, 16)), 8),
        (lambda: third_models.Corrector(30), torch.randint(0, 30, (2, 2 * LETTERS)), LETTERS + 8),
    ],
)
def test_a_decoder_does_not_see_ahead(make, x, first):
    model, changed = make().eval(), x.clone()
    changed[:, first:] = (x[:, first:] + 1) % 30
    before, after = model(x), model(changed)
    assert torch.allclose(before[:, :8], after[:, :8], atol=1e-5) and not torch.allclose(before[:, 8:], after[:, 8:])


def test_missing_letters_say_nothing_and_present_ones_do():
    model = third_models.Corrector(30).eval()
    x = torch.randint(0, 30, (2, 2 * LETTERS))
    x[:, 12:LETTERS] = 30
    before = model(x)
    with torch.no_grad():
        model.letters.weight[30] += 1
    assert torch.allclose(model(x), before, atol=1e-5)
    x[:, 0] = (x[:, 0] + 1) % 30
    assert not torch.allclose(model(x), before, atol=1e-3)


def test_a_graph_is_the_same_in_any_order_of_its_nodes():
    model, (x, _), order = third_models.GraphNet(), third_data.graphs(2, seeded()), torch.randperm(NODES)
    moved = torch.cat([x[:, order][:, :, order], x[:, order, NODES:]], 2)
    assert torch.allclose(model(moved), model(x)[:, order], atol=1e-5)


def test_two_experts_answer():
    model, x = third_models.Experts(4, 2, experts=3), torch.randn(50, 4)
    left_out = model.gate(x).argmin(1)
    before = model(x)
    with torch.no_grad():
        model.last_bias[0] += 1
    assert torch.equal((model(x) - before).abs().sum(1) < 1e-6, left_out == 0)


@pytest.mark.parametrize(
    ("schedule", "first", "end"),
    [(third_look.inverse_root, 1 / 10, math.sqrt(10 / 101)), (third_look.warmed_stable, 1 / 6, 0.0),
     (third_look.polynomial, 1.0, 0.0)],
)  # fmt: skip
def test_schedules_go_from_first_to_end(schedule, first, end):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), 1.0)
    scheduler = schedule(optimizer, 100)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(100):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert (rates[0], rates[-1]) == (pytest.approx(first), pytest.approx(end, abs=1e-9))
    assert max(rates) == pytest.approx(1.0, abs=1e-9) and min(rates) >= 0


def test_averaged_weights_are_looked_at_and_the_others_trained():
    free, model = third_look.ScheduleFree(), nn.Linear(1, 1)
    optimizer = free.make(model, 0.1)
    for _ in range(5):
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
    trained = model.weight.item()
    seen = free.averaged(lambda m: m.weight.item())(model)
    assert seen > trained == pytest.approx(model.weight.item(), abs=1e-6)  # behind, and put back


def test_a_look_that_has_not_been_run_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "FOLDER", tmp_path)
    assert tables.judged("third_look") == "Not run yet.\n"

from collections import defaultdict
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from adaptbs.model.batch_loss import BatchLoss, weight_of_targets

X, Y = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]])


@pytest.fixture
def double() -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    return model


def test_the_last_item_is_the_target(double):
    # predictions 2 and 4 of targets 1 and 4
    assert BatchLoss(mse_loss)(double, (X, Y)).item() == 0.5


def test_all_items_before_it_are_inputs():
    bilinear = nn.Bilinear(1, 1, 1, bias=False)
    nn.init.constant_(bilinear.weight, 1.0)
    assert BatchLoss(mse_loss)(bilinear, [X, X, torch.tensor([[1.0], [2.0]])]).item() == 2  # 1 of 1, 4 of 2


def test_any_other_layout_by_batch_loss(double):
    loss = BatchLoss(batch_loss=lambda model, batch: model(batch["x"]).mean())
    assert loss(double, {"x": X}).item() == 3


def test_the_batch_is_moved_to_the_model():
    def loss(model, batch):
        assert {tensor.device.type for tensor in batch} == {"meta"}
        return torch.zeros(())

    BatchLoss(batch_loss=loss)(nn.Linear(1, 1, device="meta"), (X, Y))


def test_the_forward_pass_runs_under_autocast(double):
    seen = []
    loss = BatchLoss(
        batch_loss=lambda model, x: seen.append(model(x).dtype) or model(x).mean(),
        autocast=lambda: torch.autocast("cpu", torch.bfloat16),
    )
    loss(double, X)
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize(
    ("loss_func", "reduction"),
    [(nn.MSELoss(), "mean"), (nn.CrossEntropyLoss(reduction="sum"), "sum"), (nn.MSELoss(reduction="none"), None),
     (mse_loss, None)],
)  # fmt: skip
def test_a_loss_may_say_how_it_reduces(loss_func, reduction):
    assert BatchLoss(loss_func).reduction == reduction


def test_one_element_of_any_shape_is_a_loss(double):
    assert BatchLoss(batch_loss=lambda model, x: model(x).mean().reshape(1, 1))(double, X).numel() == 1


class Teacher(nn.BatchNorm1d):
    def distance(self, model, batch):
        return (model(batch) - self(batch)).square().mean()


def distance_to(teacher, model, batch):
    return teacher.distance(model, batch)


TEACHER = Teacher(1)


def calls_another(model, batch):
    return calls_the_teacher(model, batch)


def calls_the_teacher(model, batch):
    return TEACHER.distance(model, batch)


class Recipe:
    """A trainer of one's own: its loss is an attribute."""

    def __init__(self) -> None:
        self.teacher = TEACHER

    def loss(self, model, batch):
        return self.teacher.distance(model, batch)

    __call__ = loss


class Counts:
    """A trainer that weights its loss by the number of its calls, and collects what it is going to log."""

    def __init__(self) -> None:
        self.calls, self.logs = 0, defaultdict(lambda: defaultdict(list))

    def loss(self, model, batch):
        self.calls += 1
        self.logs["train"]["loss"].append(self.calls)
        return self.calls * model(batch).mean()

    __call__ = loss


@pytest.mark.parametrize("how", [lambda it: it.loss, lambda it: it, lambda it: partial(it.loss)])
def test_the_object_whose_method_the_loss_is_is_restored_too(double, how):
    counts = Counts()
    loss = BatchLoss(batch_loss=how(counts))
    loss(double, X)
    for _ in range(2):
        with loss.preserving(double):
            loss(double, X)
            assert counts.calls == 2
    assert counts.calls == 1 and counts.logs["train"]["loss"] == [1]


@pytest.mark.parametrize(
    "batch_loss",
    [
        TEACHER.distance,
        lambda model, batch: TEACHER.distance(model, batch),
        partial(distance_to, TEACHER),
        partial(partial(Teacher.distance), TEACHER),
        calls_another,
        Recipe().loss,
        Recipe(),
    ],
)
def test_the_modules_that_a_loss_uses_are_restored_with_the_model(double, batch_loss):
    loss = BatchLoss(batch_loss=batch_loss)
    with loss.preserving(double):
        loss(double, X)
        assert TEACHER.num_batches_tracked == 1
    assert TEACHER.num_batches_tracked == 0


WEIGHTED = {"weight": torch.tensor([1.0, 2.0, 4.0])}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.CrossEntropyLoss, {}), (nn.CrossEntropyLoss, WEIGHTED), (nn.CrossEntropyLoss, {"label_smoothing": 0.1}),
        (nn.NLLLoss, {}), (nn.NLLLoss, WEIGHTED),
    ],
)  # fmt: skip
def test_the_targets_alone_say_what_a_mean_is_over(kind, options):
    targets, predictions = torch.tensor([0, 2, -100, 1, 2]), torch.randn(5, 3).log_softmax(1)
    mean, total = kind(**options), kind(**options, reduction="sum")
    assert weight_of_targets(mean, [targets]) == pytest.approx(
        (total(predictions, targets) / mean(predictions, targets)).item()
    )
    assert weight_of_targets(mean, [torch.tensor([-100])]) == 0
    assert weight_of_targets(total, [targets]) is None


def test_of_other_losses_and_of_probabilities_they_do_not():
    class Own(nn.CrossEntropyLoss):
        pass

    targets = torch.tensor([0, 1])
    assert weight_of_targets(Own(), [targets]) is weight_of_targets(mse_loss, [targets]) is None
    assert weight_of_targets(nn.CrossEntropyLoss(), [torch.ones(2, 2) / 2]) is None

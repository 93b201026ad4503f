"""Wrong input gets an error that names the argument and says what to do, and changes nothing."""

import contextlib
import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from adaptbs import AdaptiveDataLoader, bs_find
from adaptbs.noise_scale.window import FULL

DATA = TensorDataset(torch.ones(64, 1), torch.zeros(64, 1))


class Run:
    """What a user has in hand before adaptbs comes in."""

    def __init__(self) -> None:
        self.model = nn.Linear(1, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.scheduler = OneCycleLR(self.optimizer, max_lr=0.1, total_steps=16)

    def loader(self, **changed):
        arguments = {
            "dataset": DATA, "batch_size": 4, "model": self.model, "optimizer": self.optimizer,
            "scheduler": self.scheduler, "step_time": (1.0, 0.0),
        }  # fmt: skip
        return AdaptiveDataLoader(**arguments | changed)

    def state(self):
        return copy.deepcopy(
            (
                [(p.tolist(), p.grad is None, p.requires_grad) for p in self.model.parameters()],
                self.model.training,
                {name: value for name, value in self.optimizer.param_groups[0].items() if name != "params"},
                len(self.optimizer._optimizer_step_pre_hooks),
                len(self.optimizer._optimizer_step_post_hooks),
                type(self.scheduler).__mro__,
                self.scheduler.last_epoch,
                torch.get_rng_state().tolist(),
            )
        )


@pytest.fixture
def run() -> Run:
    return Run()


@contextlib.contextmanager
def refused(run: Run, error: type[Exception], *words: str):
    """The error is raised, its message has all these words, and everything is as it was."""
    before = run.state()
    with pytest.raises(error) as raised:
        yield
    for word in words:
        assert word in str(raised.value)
    assert run.state() == before


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(8))


class NoLength:
    def __getitem__(self, index):
        return torch.ones(1)


class NoItems:
    def __iter__(self):
        return iter(range(8))


class Endless:
    def __iter__(self):
        return iter(range(8))


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        # sizes
        ({"batch_size": 0}, ValueError, ["batch_size=0", "at least 1"]),
        ({"batch_size": -1}, ValueError, ["batch_size=-1", "at least 1"]),
        ({"batch_size": 2.5}, TypeError, ["batch_size=2.5", "integer"]),
        ({"batch_size": True}, TypeError, ["batch_size=True", "integer"]),
        ({"batch_size": None}, TypeError, ["batch_size=None", "integer"]),
        ({"max_batch_size": 0}, ValueError, ["max_batch_size=0", "at least 1"]),
        ({"max_batch_size": "64"}, TypeError, ["max_batch_size='64'", "integer"]),
        ({"max_batch_size": 3}, ValueError, ["max_batch_size=3 is below batch_size=4", "raise max_batch_size"]),
        ({"base_batch_size": 1.5}, TypeError, ["base_batch_size=1.5", "integer"]),
        ({"epochs": 0}, ValueError, ["epochs=0", "at least 1"]),
        ({"epochs": 1.5}, TypeError, ["epochs=1.5", "integer"]),
        # data
        ({"batch_size": 65}, ValueError, ["batch_size=65", "64 samples of the dataset", "start with at most 64"]),
        ({"dataset": Stream()}, TypeError, ["dataset of type Stream has no length", "__len__"]),
        ({"dataset": DataLoader(DATA, 4)}, TypeError, ["dataset= is a DataLoader", "AdaptiveDataLoader.from_loader("]),
        ({"dataset": NoItems()}, TypeError, ["it must give samples", "__getitem__"]),
        ({"dataset": NoLength()}, TypeError, ["dataset of type NoLength has no length", "__len__"]),
        ({"sampler": Endless()}, TypeError, ["sampler of type Endless has no length", "__len__"]),
        ({"sampler": range(64), "shuffle": True}, ValueError, ["sampler=", "shuffle=True", "not both"]),
        ({"batch_sampler": [[0, 1]]}, ValueError, ["batch_sampler=", "sampler= or shuffle="]),
        # what trains
        ({"model": nn.ReLU()}, ValueError, ["model has no trainable parameter"]),
        ({"optimizer": "adam"}, TypeError, ["optimizer='adam'", "torch.optim.Optimizer"]),
        ({"scheduler": "cosine"}, TypeError, ["scheduler='cosine'", "LRScheduler"]),
        (
            {"source": "halves"},
            ValueError,
            ["source='halves'", "loss_func=", "batch_loss=", "overhead=0"],
        ),
        (
            {"loss_func": mse_loss, "batch_loss": lambda model, batch: 0},
            ValueError,
            ["either loss_func=", "or batch_loss="],
        ),
        ({"loss_func": "mse"}, TypeError, ["loss_func='mse'", "function"]),
        # how to decide
        ({"target": "fastest"}, ValueError, ["target='fastest'", "'goodput', 'noise_scale' or a function"]),
        ({"target": None}, ValueError, ["target=None", "'goodput'"]),
        ({"lr_scaling": "cubic"}, ValueError, ["lr_scaling='cubic'", "'auto', 'linear', 'sqrt', 'gain', 'none'"]),
        ({"lr_scaling": lambda *_: float("nan")}, ValueError, ["lr_scaling= returned nan", "above 0"]),
        ({"decide_every": 0}, ValueError, ["decide_every=0", "between 0 and 1"]),
        ({"confidence": 90}, ValueError, ["confidence=90", "between 0 and 1"]),
        ({"overhead": -0.1}, ValueError, ["overhead=-0.1", "between 0 and 1, and be below 1 (0: off)"]),
        ({"overhead": "5%"}, TypeError, ["overhead='5%'", "number"]),
        ({"step_time": 0.1}, TypeError, ["step_time=0.1", "(a, b)"]),
        ({"step_time": "fast"}, TypeError, ["step_time='fast'", "(a, b)"]),
        ({"step_time": (1, 2, 3)}, TypeError, ["step_time=(1, 2, 3)", "(a, b)"]),
        ({"step_time": (-1, 2)}, ValueError, ["step_time=(-1, 2)", "not negative"]),
        ({"step_time": (0, 0)}, ValueError, ["step_time=(0, 0)", "not both 0"]),
        ({"step_time": (float("nan"), 1)}, ValueError, ["step_time=(nan, 1)", "seconds"]),
        # what DataLoader refuses
        ({"num_workers": -1}, ValueError, ["num_workers"]),
        ({"wrokers": 2}, TypeError, ["wrokers"]),
    ],
)
def test_a_loader_refuses(run, changed, error, words):
    with refused(run, error, *words):
        run.loader(**changed)


def test_a_loader_refuses_a_frozen_model(run):
    run.model.requires_grad_(False)
    with refused(run, ValueError, "model has no trainable parameter"):
        run.loader()


def first_error_while_iterating(run, error, *words, **arguments):
    """The first batch comes through; asking for the others is what is refused."""
    batches = iter(run.loader(decide_every=0.1, **arguments))
    next(batches)
    with refused(run, error, *words):
        list(batches)


@pytest.mark.parametrize("wanted", [float("nan"), float("inf"), 0, -8, "64", None])
def test_a_target_function_must_return_a_size(run, wanted):
    words = [f"target= returned {wanted!r}", "finite number of at least 1", "Return the batch_size"]
    first_error_while_iterating(run, ValueError, *words, target=lambda *_: wanted, overhead=0)


def test_the_batch_size_outlives_a_wrong_target(run):
    loader = run.loader(target=lambda *_: "64", decide_every=0.1, overhead=0)
    with pytest.raises(ValueError, match="target="):
        list(loader)
    assert loader.batch_size == 4
    assert len(loader.history) == 1


def unreduced(prediction, target):
    return (prediction - target).square()


@pytest.mark.parametrize(
    ("loss_func", "words"),
    [
        (unreduced, ["the loss must be one number", "shape", "return the mean over its samples"]),
        (lambda *_: 1.0, ["the loss must be one number", "got float"]),
    ],
)
@pytest.mark.parametrize("source", ["auto", "halves"])
def test_a_loss_must_be_one_number(run, loss_func, words, source):
    loader = run.loader(overhead=0.01, source=source, loss_func=loss_func)
    batches = iter(loader)
    with refused(run, ValueError, *words):
        next(batches)  # on the first batch, before any step


def test_a_batch_that_the_loss_cannot_take_is_held_with_one_warning(run, caplog):
    loader = run.loader(
        overhead=0.01, source="halves", loss_func=mse_loss, collate_fn=lambda items: {"x": torch.ones(4, 1)}
    )
    with caplog.at_level(logging.WARNING, "adaptbs"):
        delivered = sum(1 for _ in loader)
    assert delivered == len(loader)
    (said,) = [record.getMessage() for record in caplog.records if "is held" in record.getMessage()]
    assert all(word in said for word in ["loss_func=", "dict", "give batch_loss=", "on a batch of {'x'"])


def test_nan_gradients_are_left_out_of_the_estimate_with_one_warning(run, caplog):
    x = torch.ones(64, 1)
    x[[9, 25]] = float("nan")  # in the 3rd and 7th of 16 batches
    loader = run.loader(
        dataset=TensorDataset(x, torch.zeros(64, 1)),
        overhead=0.5, decide_every=0.1, target=lambda *_: 4, source="halves", loss_func=mse_loss,
    )  # fmt: skip
    loader.training_run.controller.measure_next_step = lambda: True
    batches = 0
    with caplog.at_level(logging.WARNING, "adaptbs"):
        for batch, target in loader:
            batches += 1
            loss = mse_loss(run.model(batch), target)
            if torch.isfinite(loss):  # as GradScaler would skip the step
                run.optimizer.zero_grad()
                loss.backward()
                run.optimizer.step()
    assert batches == 16
    assert loader.noise_scale.measurements == FULL  # the latest, and none of the two
    assert loader.noise_scale.grad_sq > 0
    (warning,) = caplog.records
    assert "not finite" in warning.message
    assert "lower the learning rate" in warning.message


def find(run, loader=None, **changed):
    loader = DataLoader(DATA, batch_size=8, shuffle=True) if loader is None else loader
    return bs_find(run.model, changed.pop("loss_func", mse_loss), loader, **changed)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"n_batch": 1}, ValueError, ["n_batch=1", "two batches or more"]),
        ({"n_batch": 2.0}, TypeError, ["n_batch=2.0", "integer"]),
        ({"num_it": 0}, ValueError, ["num_it=0", "at least 1"]),
        ({"num_it": 1}, ValueError, ["the loader gave fewer than two batches", "raise num_it"]),
        ({"beta": 2}, ValueError, ["beta=2", "between 0", "1"]),
        ({"beta": float("nan")}, ValueError, ["beta=nan"]),
        ({"beta": "high"}, TypeError, ["beta='high'", "number between 0"]),
        ({"confidence": 1.0}, ValueError, ["confidence=1.0", "and be neither"]),
        ({"confidence": 90}, ValueError, ["confidence=90", "between 0 and 1"]),
        ({"lr": -1.0}, ValueError, ["learning rate"]),
        ({"optimizer": "adam"}, TypeError, ["optimizer='adam'", "torch.optim.Optimizer"]),
        ({"loss_func": nn.MSELoss}, TypeError, ["loss_func=MSELoss is a class", "MSELoss()"]),
        ({"loss_func": lambda p, y: (p > y).float().mean()}, ValueError, ["depends on no trainable", "a comparison"]),
        ({"loss_func": lambda p, y: mse_loss(p.detach(), y)}, ValueError, ["depends on no trainable", "detach()"]),
        ({"loss_func": lambda p, y: torch.nan * mse_loss(p, y)}, ValueError, ["were finite", "look at the loss"]),
        ({"autocast": torch.autocast("cpu")}, TypeError, ["autocast=", "lambda: torch.autocast"]),
        ({"loader": DATA}, TypeError, ["loader= is a dataset (TensorDataset)", "DataLoader(dataset, batch_size"]),
        ({"loss_func": None}, ValueError, ["loss_func=", "batch_loss="]),
        ({"batch_loss": lambda model, batch: 0}, ValueError, ["either loss_func=", "or batch_loss="]),
        ({"loss_func": unreduced}, ValueError, ["the loss must be one number", "return the mean over its samples"]),
        ({"loader": DataLoader(DATA, batch_size=64)}, ValueError, ["the loader gave fewer", "lower its batch size"]),
        ({"loader": []}, ValueError, ["the loader gave no batch"]),
    ],
)  # fmt: skip
def test_the_finder_refuses(run, changed, error, words):
    with refused(run, error, *words):
        find(run, **changed)


def test_the_finder_refuses_to_train_by_an_optimizer_that_calls_the_loss_itself(run):
    run.optimizer = torch.optim.LBFGS(run.model.parameters())
    with refused(run, TypeError, "LBFGS", "closure", "leave lr= out"):
        find(run, optimizer=run.optimizer, lr=0.1)
    assert find(run, optimizer=run.optimizer).samples


def test_the_finder_refuses_a_frozen_model(run):
    run.model.requires_grad_(False)
    with refused(run, ValueError, "model has no trainable parameter"):
        find(run)

"""What a trial of a size counts is no less than what a measured step of that size holds, by bytes of live tensors."""

import pytest
import torch
from torch import nn
from torch.optim import Adam

from adaptbs.gradients.halves import HalfBatches
from adaptbs.gradients.in_step import InStep
from adaptbs.gradients.meter import NoiseMeter
from adaptbs.gradients.ranks import RankGradients
from adaptbs.gradients.views import views_of
from adaptbs.memory.trial import MemoryTrial
from adaptbs.model.batch_loss import BatchLoss
from adaptbs.ranks import Ranks
from benchmarks.common.live_bytes import LiveMemory, peak_bytes


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.b(nn.functional.gelu(self.a(self.norm(x))))


def of_tokens(pred, y):
    return nn.functional.cross_entropy(pred.flatten(0, 1).float(), y.flatten())


def mlp(n: int):
    layers = (each for _ in range(3) for each in (nn.Linear(96, 96), nn.ReLU()))
    return nn.Sequential(*layers, nn.Linear(96, 10)), nn.CrossEntropyLoss(), (torch.randn(n, 96), torch.arange(n) % 10)


def wide(n: int):
    """One parameter is nearly all of the model."""
    return nn.Sequential(nn.Linear(64, 512), nn.Tanh(), nn.Linear(512, 1)), nn.MSELoss(), (
        torch.randn(n, 64), torch.randn(n, 1),
    )  # fmt: skip


def tokens(n: int):
    model = nn.Sequential(nn.Embedding(50, 24), Block(24), Block(24), nn.Linear(24, 50))
    x = torch.randint(50, (n, 16))
    return model, of_tokens, (x, x.roll(1, 1))


def tied(n: int):
    """A weight that is used twice, whose terms are held until the pass ends."""
    model = nn.Sequential(nn.Embedding(50, 24), Block(24), nn.Linear(24, 50, bias=False))
    model[2].weight = model[0].weight
    x = torch.randint(50, (n, 16))
    return model, of_tokens, (x, x.roll(1, 1))


def cnn(n: int):
    layers = (nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten())
    x = torch.randn(n, 3, 12, 12)
    return nn.Sequential(*layers, nn.Linear(288, 10)), nn.CrossEntropyLoss(), (x, torch.arange(n) % 10)


def sums(n: int):
    model, _, batch = mlp(n)
    return model, nn.CrossEntropyLoss(reduction="sum"), batch


MODELS = {"MLP": mlp, "wide": wide, "tokens": tokens, "tied": tied, "CNN": cnn, "sum": sums}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Case:
    """A model, its loss on a batch of n, and a trial of that size."""

    def __init__(self, model: str, dtype: str, n: int) -> None:
        torch.manual_seed(0)
        net, loss_func, batch = MODELS[model](n)
        self.model = net.to(DTYPES[dtype])
        self.batch = tuple(t.to(DTYPES[dtype]) if t.is_floating_point() else t for t in batch)
        self.loss, self.n = BatchLoss(loss_func), n
        self.optimizer = Adam(self.model.parameters(), 1e-4)

    @property
    def known(self):
        state = [t for entry in self.optimizer.state.values() for t in entry.values()]
        return [*self.model.parameters(), *self.batch, *state]

    def backward(self) -> None:
        self.loss(self.model, self.batch).backward()

    def held(self, measured) -> int:
        """Bytes alive at once in a measured step."""
        self.optimizer.zero_grad()
        peak = peak_bytes(measured, self.known)
        self.optimizer.zero_grad()
        return peak

    def counted(self, measures, **how) -> int:
        """Bytes that a trial of the size counts."""
        one = tuple(t[:2] for t in self.batch)  # as a smaller batch of the run, which is repeated
        memory = LiveMemory(self.known)
        trial = MemoryTrial(self.model, self.loss, memory, lambda: one, measures=lambda: measures, **how)
        peak = trial(self.n).peak
        assert peak is not None
        return peak


SIZES = [4, 128]  # the parameters are most of what is held, and little of it


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", MODELS)
def test_of_a_step_that_is_measured_as_it_happens(model, dtype, n):
    case = Case(model, dtype, n)
    counted = case.counted(NoiseMeter(case.model, case.loss))
    watch = InStep(case.model)

    def step() -> None:
        watch.arm(n)
        case.backward()
        assert watch.norms() is not None
        watch.disarm()

    first, later = case.held(step), case.held(step)
    assert later <= first <= counted, "the first one is checked, for which sums of terms are held"


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("views", [{}, {"by_group": True}, {"metric": "adam"}], ids=["plain", "group", "adam"])
def test_of_a_measurement_by_halves(model, dtype, n, views):
    case = Case(model, dtype, n)
    case.backward()
    case.optimizer.step()  # makes the second moment
    given = views_of(case.optimizer, **{"metric": "plain", "by_group": False, **views})
    counted = case.counted(NoiseMeter(case.model, case.loss, choice="halves", views=given))
    halves = HalfBatches(case.model, case.loss, given)

    def step() -> None:
        assert halves.measure(case.batch) is not None
        case.backward()

    first, later = case.held(step), case.held(step)
    assert max(first, later) <= counted


class Two(Ranks):
    """Two ranks that see the same."""

    __slots__ = ()

    def mean(self, numbers):
        numbers.mul_(2)  # as all_reduce, in place
        return numbers / 2


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("averages", [True, False], ids=["DDP", "own averaging"])
def test_of_what_ranks_see(averages, passes, dtype, n):
    case = Case("MLP", dtype, n)
    gradients = RankGradients(case.model, Two(0, 2, False), passes)
    gradients._averages, gradients._copies = averages, passes > 1 or not averages

    def step() -> None:
        gradients.arm(lambda: True)
        for _ in range(passes):
            case.backward()
        gradients.norms(n)
        gradients.disarm()

    assert case.held(step) <= case.counted(gradients, accumulates=passes > 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_count_is_not_far_above(dtype):
    """Else growth would end where there is room."""
    case = Case("MLP", dtype, 512)
    halves, watch = HalfBatches(case.model, case.loss), InStep(case.model)

    def by_halves() -> None:
        halves.measure(case.batch)
        case.backward()

    def in_step() -> None:
        watch.arm(512)
        case.backward()
        watch.norms()
        watch.disarm()

    assert case.counted(NoiseMeter(case.model, case.loss, choice="halves")) < 2 * case.held(by_halves)
    assert case.counted(NoiseMeter(case.model, case.loss)) < 1.35 * case.held(in_step)

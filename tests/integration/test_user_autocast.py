"""Norms are the same whether the user's autocast is around the forward pass alone or around the backward pass too."""

from functools import partial

import fastai.callback.progress  # noqa: F401, which gives a Learner `no_bar`
import pytest
import torch
from fastai.callback.fp16 import MixedPrecision
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import Adam
from fastai.torch_core import set_seed
from torch import nn
from torch.utils.data import TensorDataset

from adaptbs.fastai import AdaptiveBatchSize
from adaptbs.gradients.halves import HalfBatches
from adaptbs.gradients.in_step import InStep
from adaptbs.model.batch_loss import BatchLoss

WORDS, WIDTH, LENGTH, TEXTS = 50, 64, 20, 32
SCALE = 2.0**14  # of the loss: gradients are those of float16 training, whose products with each other overflow


class Tokens(nn.Module):
    """A model of tokens, whose embedding may be its head, too."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.inner, self.out = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WORDS)
        if tied:
            self.out.weight = self.words.weight

    def forward(self, x):
        return self.out(torch.relu(self.inner(self.words(x))))


def cross_entropy(predicted, targets):
    return nn.functional.cross_entropy(predicted.flatten(0, 1).float(), targets.flatten())


def texts(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randint(WORDS, (n, LENGTH))
    return x, (7 * x + torch.randint(3, x.shape)) % WORDS


class Attention(Tokens):
    """The same with attention, whose projections are no layers that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x):
        h = self.words(x)
        return self.out(torch.relu(self.inner(h + self.attend(h, h, h, need_weights=False)[0])))


@pytest.mark.parametrize("kind", [Tokens, partial(Tokens, tied=True), Attention])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_whose_backward_pass_is_under_autocast_too(kind, dtype):
    model, (x, y), found = kind(), texts(TEXTS), []
    for around_all in (False, True):
        watch = InStep(model)
        watch.arm(TEXTS)
        with torch.autocast("cpu", dtype):
            loss = SCALE * cross_entropy(model(x), y)
            if around_all:
                loss.backward()
        if not around_all:
            loss.backward()
        found.append(watch.norms())
        watch.disarm()
        model.zero_grad()
    inner, outer = found
    assert torch.isfinite(inner.small) and inner.small == outer.small and inner.large == outer.large


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_under_the_users_autocast(dtype):
    model, batch = Tokens(), texts(TEXTS)
    inside = HalfBatches(model, BatchLoss(cross_entropy, autocast=lambda: torch.autocast("cpu", dtype))).measure(batch)
    with torch.autocast("cpu", dtype):
        around = HalfBatches(model, BatchLoss(cross_entropy)).measure(batch)
    assert inside.small.isfinite() and inside.large.isfinite()
    torch.testing.assert_close(around.small, inside.small, rtol=1e-3, atol=0)
    torch.testing.assert_close(around.large, inside.large, rtol=1e-3, atol=0)


class Mixed(MixedPrecision):
    """fastai's own with a CPU's autocast. It enters that before the batch, and so before a measurement by halves."""

    dtype = torch.float16

    def before_fit(self) -> None:
        self.autocast = torch.autocast("cpu", self.dtype)
        self.learn.scaler, self.scales = torch.amp.GradScaler("cpu", enabled=self.dtype == torch.float16), []


class MixedToo(Mixed):
    dtype = torch.bfloat16


@pytest.mark.parametrize("source", ["in_step", "halves"])
@pytest.mark.parametrize("mixed", [Mixed, MixedToo])
def test_a_learner_in_half_precision_has_the_noise_scale_of_one_in_full(mixed, source):
    found = []
    for beside in ([], [mixed()]):
        set_seed(1)
        data = TensorDataset(*texts(2048))
        dls = DataLoaders(DataLoader(data, bs=16, shuffle=True), DataLoader(data, bs=512), device=torch.device("cpu"))
        learn = Learner(dls, Tokens(), loss_func=cross_entropy, opt_func=Adam)
        callback = AdaptiveBatchSize(
            source=source, overhead=0.3, max_batch_size=16, step_time=(1e-3, 1e-5), budget="epochs"
        )  # fmt: skip
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-4, cbs=[*beside, callback])
        assert callback.noise_scale.skipped == 0 and callback.noise_scale.measurements >= 10
        found.append(callback.noise_scale.simple)  # a loss scale is no part of it
    full, half = found
    assert half == pytest.approx(full, rel=0.25)  # of weights that rounding has led apart; an overflow is no number

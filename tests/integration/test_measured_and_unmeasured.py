"""A run that is measured in its steps, at a constant batch, trains bit for bit as a stock loop without adaptbs."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from adaptbs import AdaptiveDataLoader

BATCH_SIZE, EPOCHS = 16, 2


class Centred(nn.Module):
    """A loss with a state, as DINO's centre."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(1))

    def forward(self, prediction, target):
        loss = F.mse_loss(prediction - self.centre, target)
        with torch.no_grad():
            self.centre.mul_(0.9).add_(0.1 * (prediction - target).mean())
        return loss


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 8), nn.Linear(8, 1)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)

    def forward(self, x):
        tokens = (x * 3).long().remainder(11)
        return self.head(self.layer(self.embedding(tokens)).mean(1))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))


def images() -> nn.Module:
    convolution = nn.Sequential(nn.Unflatten(1, (1, 2, 4)), nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4), nn.ReLU())
    return nn.Sequential(convolution, nn.Flatten(), nn.Linear(12, 1))


CASES = {
    "dropout": {"model": perceptron},
    "transformer with dropout": {"model": Tokens},
    "images": {"model": images},
    "bfloat16": {"model": perceptron, "autocast": True},
    "workers": {"model": perceptron, "workers": 2},
    "a loss module with a state": {"model": perceptron, "loss": Centred},
    "a loss module with a state, known to the loader": {"model": perceptron, "loss": Centred, "known": True},
    "accumulation and clipping": {"model": perceptron, "accumulation": 2, "clip": True},
    "gradients set to zero": {"model": perceptron, "set_to_none": False},
}


def train(measured: bool, *, model, loss=nn.MSELoss, autocast=False, workers=0, known=False, accumulation=1, clip=False,
          set_to_none=True):  # fmt: skip
    torch.manual_seed(0)
    model, loss = model(), loss()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    x = torch.randn(320, 8)
    dataset = TensorDataset(x, x.sum(1, keepdim=True))
    generator = torch.Generator().manual_seed(1)
    common = {"shuffle": True, "generator": generator, "num_workers": workers}
    loader = DataLoader(dataset, BATCH_SIZE, **common)
    if measured:
        loader = AdaptiveDataLoader(
            dataset, BATCH_SIZE, model=model, optimizer=optimizer, epochs=EPOCHS, max_batch_size=BATCH_SIZE,
            overhead=0.5, step_time=(1e-3, 1e-6), accumulation_steps=accumulation, loss_func=loss if known else None,
            **common,
        )  # fmt: skip
    for _ in range(EPOCHS):
        for i, (xb, yb) in enumerate(loader, 1):
            with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
                value = loss(model(xb), yb)
            (value / accumulation).backward()
            if i % accumulation == 0:
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad(set_to_none=set_to_none)
    states = [*model.parameters(), *loss.buffers(), torch.get_rng_state(), generator.get_state()]
    return loader, [s.detach().clone() for s in states]


@pytest.mark.parametrize("case", CASES)
def test_measuring_in_the_step_changes_no_bit(case):
    _, stock = train(False, **CASES[case])
    loader, ours = train(True, **CASES[case])
    assert loader.noise_scale.measurements >= 8
    assert set(loader.history.to_dict()["source"]) - {None} == {"in step"}
    assert loader.noise_scale.doubt is None or "measurements" not in loader.noise_scale.doubt
    assert all(torch.equal(a, b) for a, b in zip(stock, ours, strict=True))


def test_clipping_and_accumulation_leave_the_noise_scale_as_it_is():
    # Clipping comes after the backward pass, whose sum of terms is what counts.
    found = [train(True, model=perceptron, clip=clip, accumulation=1)[0].history.to_dict() for clip in (False, True)]
    first = [columns["trace"][columns["event"].index("measurement")] for columns in found]
    assert first[0] == first[1]


def test_accumulated_batches_are_one_measurement_of_all_their_samples():
    loader, _ = train(True, model=perceptron, accumulation=4)
    columns = loader.history.to_dict()
    assert columns["event"].count("measurement") > 0
    tracker = loader.training_run.controller._noise_scales
    assert {entry.weight for entry in tracker._plain._entries} == {4 * BATCH_SIZE}

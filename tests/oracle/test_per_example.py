"""Per-example norms by hooks against one backward pass an example."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adaptbs.gradients.per_example import PerExample, Unsupported, _largest
from adaptbs.model.batch_loss import BatchLoss

N = 6


def brute(model: nn.Module, batch_loss, batch) -> tuple[float, float]:
    """mean |g_i|^2 and |G|^2, one backward pass an example."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = []
    for i in range(N):
        loss = batch_loss(model, tuple(t[i : i + 1] for t in batch))
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    stacked = torch.stack(gradients)
    return stacked.square().sum(1).mean().item(), stacked.mean(0).square().sum().item()


class Mean(nn.Module):
    """Mean over positions."""

    def forward(self, x):
        return x.mean(1)


def images(*layers: nn.Module, channels: int = 8) -> nn.Module:
    return nn.Sequential(*layers, nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 3))


def layers(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules)


def sequences(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(8, 8), Mean(), nn.Linear(8, 3))


TOKENS = torch.tensor([[1, 2, 2, 0], [3, 3, 3, 0], [1, 0, 0, 0], [4, 5, 6, 7], [1, 2, 1, 2], [5, 5, 0, 0]])
torch.manual_seed(3)
VECTORS, POSITIONS, PICTURES = torch.randn(N, 8), torch.randn(N, 5, 8), torch.randn(N, 4, 9, 9)
LONG, SIGNALS = torch.randn(N, 40, 8), torch.randn(N, 4, 20)

CASES = {
    "linear": (lambda: nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)), VECTORS),
    "linear, activated in place": (lambda: layers(nn.Linear(8, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)), VECTORS),
    "linear on sequences": (lambda: sequences(nn.Linear(8, 8)), POSITIONS),
    "linear on long sequences": (lambda: sequences(nn.Linear(8, 8)), LONG),
    "embedding": (lambda: sequences(nn.Embedding(9, 8)), TOKENS),
    "a subclass that computes the same": (lambda: sequences(type("Own", (nn.Embedding,), {})(9, 8)), TOKENS),
    "embedding with padding": (lambda: sequences(nn.Embedding(9, 8, padding_idx=0)), TOKENS),
    "embedding, one token": (lambda: nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 3)), TOKENS[:, 0]),
    "bag, summed": (lambda: nn.Sequential(nn.EmbeddingBag(9, 8, mode="sum"), nn.Linear(8, 3)), TOKENS),
    "bag, averaged": (lambda: layers(nn.EmbeddingBag(9, 8, mode="mean", padding_idx=0), nn.Linear(8, 3)), TOKENS),
    "layer norm": (lambda: sequences(nn.LayerNorm(8)), POSITIONS),
    "layer norm over two dimensions": (lambda: sequences(nn.LayerNorm((5, 8))), POSITIONS),
    "rms norm": (lambda: sequences(nn.RMSNorm(8)), POSITIONS),
    "group norm": (lambda: images(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8)), PICTURES),
    "conv 2d": (lambda: images(nn.Conv2d(4, 8, 3, stride=2, padding=1)), PICTURES),
    "conv 2d, in groups": (lambda: images(nn.Conv2d(4, 8, (3, 2), dilation=2, groups=2, bias=False)), PICTURES),
    "conv 1d": (
        lambda: layers(nn.Conv1d(4, 6, 3, 2, 1, 2), nn.Tanh(), nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(12, 3)),
        SIGNALS,
    ),
    "frozen first layer": (lambda: layers(nn.Linear(8, 5).requires_grad_(False), nn.Tanh(), nn.Linear(5, 3)), VECTORS),
    "frozen weight, free bias": (lambda: free_bias(), VECTORS),
    "conv where Gram is cheaper": (lambda: images(nn.Conv2d(4, 8, 8)), PICTURES),
}  # fmt: skip


def free_bias() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    model[0].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", CASES)
def test_layer(name, reduction):
    make, x = CASES[name]
    torch.manual_seed(0)
    model, y = make(), torch.arange(N) % 3
    with torch.no_grad():
        for p in model.parameters():  # no weight at a special value such as LayerNorm's 1
            p.add_(0.1 * torch.randn_like(p))
    source = PerExample(model, BatchLoss(nn.CrossEntropyLoss(reduction=reduction)))
    small, large = brute(model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), (x, y))
    norms = source.measure((x, y))
    assert (norms.small_size, norms.large_size) == (1, N)
    assert float(norms.small) == pytest.approx(small, rel=1e-5)
    assert float(norms.large) == pytest.approx(large, rel=1e-5)
    assert not any(m._forward_hooks for m in model.modules()), "a hook was left behind"


def test_chunks_make_no_difference(monkeypatch):
    make, x = CASES["conv 2d"]
    torch.manual_seed(0)
    model, y = make(), torch.arange(N) % 3
    whole = PerExample(model, BatchLoss(nn.functional.cross_entropy)).measure((x, y))
    monkeypatch.setattr("adaptbs.gradients.per_example.AT_ONCE", 1)
    chunked = PerExample(model, BatchLoss(nn.functional.cross_entropy)).measure((x, y))
    assert float(chunked.small) == pytest.approx(float(whole.small), rel=1e-6)


def test_dropout_and_random_state():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 3))
    source = PerExample(model, BatchLoss(nn.functional.cross_entropy))
    state = torch.get_rng_state()
    assert source.measure((VECTORS, torch.arange(N) % 3)) is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


class BehindItsBack(nn.Module):
    """An embedding whose weight is also the output layer's, used without its forward."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 8)

    def forward(self, tokens):
        return self.embedding(tokens) @ self.embedding.weight.T


class OfItsOwn(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.ones(8)), nn.Linear(8, 3)

    def forward(self, x):
        return self.layer(self.scale * x)


class PositionsFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x):
        return self.layer(x.transpose(0, 1))


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Weighted(nn.Module):
    """A bag whose samples have weights of their own, which no formula here knows of."""

    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(9, 8, mode="sum")

    def forward(self, tokens):
        return self.bag(tokens, per_sample_weights=torch.full(tokens.shape, 0.5))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    return model


REFUSED = {
    "BatchNorm": (lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), VECTORS),
    "used 2 times": (Twice, VECTORS),
    "outside its own layer": (BehindItsBack, TOKENS[:, 0]),
    "OfItsOwn: no formula": (OfItsOwn, VECTORS),
    "Doubled: no formula": (lambda: Doubled(8, 3), VECTORS),
    "more than its one input": (Weighted, TOKENS),
    "share a weight": (tied, VECTORS),
    "LSTM: no formula": (lambda: nn.LSTM(8, 3), VECTORS),
    "first dimension": (PositionsFirst, POSITIONS),
    "weights are complex": (lambda: nn.Linear(8, 3, dtype=torch.complex64), VECTORS.to(torch.complex64)),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_measured_is_refused_with_the_reason(why):
    make, x = REFUSED[why]
    model = make()

    def loss(m, batch):
        out = m(batch[0])
        return (out[0] if isinstance(out, tuple) else out).abs().square().mean()

    with pytest.raises(Unsupported, match=why):
        PerExample(model, BatchLoss(batch_loss=loss)).measure((x,))
    assert not any(m._forward_hooks for m in model.modules())


class TiedByHand(nn.Module):
    """Its embedding's weight is the output layer's too, without that layer's forward."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(9, 8), nn.Linear(8, 8)

    def forward(self, tokens):
        return nn.functional.linear(self.hidden(self.embedding(tokens)), self.embedding.weight)


def test_what_is_unfrozen_later_is_checked_then():
    model, batch = TiedByHand(), (TOKENS[:, 0], torch.arange(N) % 3)
    model.embedding.requires_grad_(False)
    source = PerExample(model, BatchLoss(nn.functional.cross_entropy))
    assert source.measure(batch) is not None
    model.embedding.requires_grad_(True)
    with pytest.raises(Unsupported, match="outside its own layer"):
        source.measure(batch)


@pytest.mark.parametrize(
    ("layer", "inputs", "gradient"),
    [
        (nn.Embedding(9, 4), (50,), (50, 4)),
        (nn.EmbeddingBag(9, 4), (50,), (4,)),
        (nn.Conv2d(2, 3, 5, padding=2), (2, 10, 10), (3, 10, 10)),
        (nn.Linear(6, 5), (40, 6), (40, 5)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_chunks_are_as_small_as_the_largest_intermediate_result_asks_for(layer, inputs, gradient):
    held = {"Embedding": 50**2, "EmbeddingBag": 50**2, "Conv2d": 2 * 25 * 100, "Linear": 40 * 6}[type(layer).__name__]
    x, g = torch.zeros(inputs), torch.zeros(gradient)
    assert held <= _largest(layer, x.numel(), g) <= 2 * held

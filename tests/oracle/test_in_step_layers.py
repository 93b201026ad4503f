"""Norms measured in the step, layer by layer, against one backward pass an example."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from adaptbs.gradients.in_step import InStep
from adaptbs.gradients.terms import NotNow, Unsupported
from adaptbs.types import SquaredNorms

N = 6


def brute(model: nn.Module, batch_loss, batch, n: int = N) -> tuple[float, float]:
    """mean |g_i|^2 and |G|^2, one backward pass an example."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = []
    for i in range(n):
        batch_loss(model, tuple(t[i : i + 1] for t in batch)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in parameters]))
        model.zero_grad()
    stacked = torch.stack(gradients)
    return stacked.square().sum(1).mean().item(), stacked.mean(0).square().sum().item()


class Mean(nn.Module):
    """Mean over positions."""

    def __init__(self, dim: int = 1):
        super().__init__()
        self._dim = dim

    def forward(self, x):
        return x.mean(self._dim)


def measured(model: nn.Module, batch_loss, batch, *sizes: int) -> SquaredNorms:
    """The norms of one step of a loop."""
    source = InStep(model)
    source.arm(*(sizes or (N,)))
    try:
        batch_loss(model, batch).backward()
        return source.norms()
    finally:
        source.disarm()
        assert not any(m._forward_hooks for m in model.modules()), "a hook was left behind"


class Mixed(nn.Module):
    """A module that hands several of its inputs to the one inside."""

    def __init__(self, inside: nn.Module, call):
        super().__init__()
        self.inside, self.head, self._call = inside, nn.Linear(8, 3), call

    def forward(self, x):
        return self.head(self._call(self.inside, x).mean(1))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


class ChannelsLast(nn.Module):
    def forward(self, x):
        return x.to(memory_format=torch.channels_last)


class ConvolvedTwice(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x))).flatten(2).mean(2)


class PositionsFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x):
        return self.layer(x.transpose(0, 1)).mean(0)


class EncoderPositionsFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0)

    def forward(self, tokens):
        return self.head(self.layer(self.embedding(tokens.T)).mean(0))


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class OwnNorm(nn.Module):
    """As transformers' RMSNorm: a layer of a library's own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool):
        super().__init__()
        self.first, self.last, self._reentrant = nn.Linear(8, 8), nn.Linear(8, 3), reentrant
        self.inside = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, x):
        return self.last(checkpoint(self.inside, self.first(x), use_reentrant=self._reentrant))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    return model


def encoder(**options) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, **options)


def decoder() -> nn.Module:
    return nn.TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True)


def tail() -> nn.Module:
    return nn.Linear(6, 3)


def attention(**options):
    return nn.MultiheadAttention(8, 2, batch_first=True, **options)


def images(*layers: nn.Module, channels: int = 8) -> nn.Module:
    return nn.Sequential(*layers, nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 3))


def layers(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules)


def sequences(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(8, 8), Mean(), nn.Linear(8, 3))


TOKENS = torch.tensor([[1, 2, 2, 0], [3, 3, 3, 0], [1, 0, 0, 0], [4, 5, 6, 7], [1, 2, 1, 2], [5, 5, 0, 0]])
torch.manual_seed(3)
VECTORS, POSITIONS, PICTURES = torch.randn(N, 8), torch.randn(N, 5, 8), torch.randn(N, 4, 9, 9)
VOLUMES = torch.randn(N, 4, 5, 6, 7)
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
    "bag with weights": (lambda: Mixed(nn.EmbeddingBag(9, 8, mode="sum"), weighted_bag), TOKENS),
    "conv 2d, padding same": (lambda: images(nn.Conv2d(4, 8, 3, padding="same")), PICTURES),
    "conv 2d, circular": (lambda: images(nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular")), PICTURES),
    "conv 3d": (lambda: layers(nn.Conv3d(4, 6, 2, 2, 1), nn.Flatten(2), nn.Tanh(), Mean(2), tail()), VOLUMES),
    "transposed conv 1d": (lambda: layers(nn.ConvTranspose1d(4, 6, 3, 2), nn.Tanh(), Mean(2), tail()), SIGNALS),
    "transposed conv 2d": (lambda: images(nn.ConvTranspose2d(4, 8, 3, 2, 1, 1, groups=2)), PICTURES),
    "conv 2d, long runs of channels": (lambda: images(nn.Conv2d(4, 8, 3, 2, 1, groups=2)), PICTURES[..., :5]),
    "conv 2d, dilated, long runs": (lambda: images(nn.Conv2d(4, 8, 2, 1, (0, 1), (1, 3))), PICTURES[..., :4]),
    "conv 2d, depthwise": (lambda: images(nn.Conv2d(4, 8, 3, padding=1, groups=4)), PICTURES),
    "conv 2d, one pixel": (lambda: images(nn.Conv2d(4, 8, 1, stride=2)), PICTURES),
    "conv 2d, channels last": (lambda: images(ChannelsLast(), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 1)), PICTURES),
    "conv 2d, an edge unused": (lambda: images(nn.Conv2d(4, 8, 3, stride=3)), PICTURES),
    "conv 3d, in groups": (
        lambda: layers(nn.Conv3d(4, 6, 2, (1, 2, 3), (1, 0, 1), groups=2), nn.Flatten(2), nn.Tanh(), Mean(2), tail()),
        VOLUMES,
    ),
    "transposed conv 3d": (
        lambda: layers(nn.ConvTranspose3d(4, 6, 2, 2, 1, groups=2), nn.Flatten(2), nn.Tanh(), Mean(2), tail()), VOLUMES,
    ),
    "transposed conv 1d, longer output": (
        lambda: layers(nn.ConvTranspose1d(4, 6, 3, 2, 1, 2, dilation=3), nn.Tanh(), Mean(2), tail()), SIGNALS,
    ),
    "instance norm": (lambda: images(nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 8, 3)), PICTURES),
    "batch norm in evaluation": (lambda: images(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8).eval()), PICTURES),
    "prelu": (lambda: images(nn.Conv2d(4, 8, 3), nn.PReLU(8), nn.Conv2d(8, 8, 3), nn.PReLU()), PICTURES),
    "a layer of one's own": (lambda: sequences(OwnNorm()), POSITIONS),
    "a linear layer of one's own": (lambda: Doubled(8, 3), VECTORS),
    "used twice": (Twice, VECTORS),
    "used twice, on sequences": (lambda: sequences(Twice()), POSITIONS),
    "convolution used twice": (lambda: ConvolvedTwice(nn.Conv2d(4, 4, 3, padding=1)), PICTURES),
    "transposed convolution used twice": (lambda: ConvolvedTwice(nn.ConvTranspose2d(4, 4, 3)), PICTURES),
    "two layers of one weight": (tied, VECTORS),
    "positions first": (PositionsFirst, POSITIONS),
    "encoder, positions first": (EncoderPositionsFirst, TOKENS[:, :3]),
    "encoder": (lambda: sequences(encoder()), POSITIONS),
    "encoder, norm first, no bias": (lambda: sequences(encoder(norm_first=True, bias=False)), POSITIONS),
    "attention to something else": (lambda: Mixed(attention(), lambda m, x: m(x, *2 * [x.flip(1) ** 2])[0]), POSITIONS),
    "attention to two things": (lambda: Mixed(attention(), lambda m, x: m(x[:, :2], x.flip(1), x**2)[0]), POSITIONS),
    "attention of other sizes": (
        lambda: Mixed(attention(kdim=5, vdim=3, bias=False), lambda m, x: m(x, x[..., :5], x[..., :3])[0]), POSITIONS,
    ),
    "attention to itself and to something else": (
        lambda: Mixed(attention(), lambda m, x: m(x, x, x)[0] + m(x, *2 * [x.flip(1) ** 2])[0]), POSITIONS,
    ),
    "attention to something else and to two things": (
        lambda: Mixed(attention(), lambda m, x: m(x, *2 * [x**2])[0] + m(x, x.flip(1), x**3)[0]), POSITIONS,
    ),
    "decoder": (lambda: Mixed(decoder(), lambda m, x: m(x[:, :3], x)), POSITIONS),
    "reentrant checkpoint": (lambda: Checkpointed(reentrant=True), VECTORS),
    "checkpoint": (lambda: Checkpointed(reentrant=False), VECTORS),
    "conv where Gram is cheaper": (lambda: images(nn.Conv2d(4, 8, 8)), PICTURES),
}  # fmt: skip


def weighted_bag(bag, tokens):
    return bag(tokens, per_sample_weights=torch.arange(4.0).expand(tokens.shape).contiguous())[:, None]


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
    small, large = brute(model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), (x, y))
    norms = measured(model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction=reduction), (x, y))
    scale = N**2 if reduction == "sum" else 1
    assert (norms.small_size, norms.large_size) == (1, N)
    assert float(norms.small) / scale == pytest.approx(small, rel=2e-5)
    assert float(norms.large) / scale == pytest.approx(large, rel=2e-5)


@pytest.mark.parametrize("name", ["conv 2d", "transposed conv 2d", "encoder", "embedding", "linear on long sequences"])
def test_chunks_make_no_difference(name, monkeypatch):
    make, x = CASES[name]
    torch.manual_seed(0)
    model, y = make(), torch.arange(N) % 3

    def loss(m, b):
        return nn.functional.cross_entropy(m(b[0]), b[1])

    whole = measured(model, loss, (x, y))
    model.zero_grad()
    monkeypatch.setattr("adaptbs.gradients.terms.AT_ONCE_ON_CPU", 1)
    chunked = measured(model, loss, (x, y))
    assert float(chunked.small) == pytest.approx(float(whole.small), rel=1e-6)


class LanguageModel(nn.Module):
    """Its embedding's weight is the output layer's, too."""

    def __init__(self, *, encodes: bool = False):
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(9, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 9)
        self.head.weight, self._encodes = self.embedding.weight, encodes

    def forward(self, tokens):
        x = self.embedding(tokens)
        if self._encodes:  # a second table of the same weight, as an encoder and a decoder have
            x = x + self.embedding(tokens.flip(1)).cumsum(1)
        return self.head(torch.tanh(self.hidden(x)))


@pytest.mark.parametrize("encodes", [False, True])
def test_a_head_tied_to_the_embedding(encodes):
    torch.manual_seed(0)
    model = LanguageModel(encodes=encodes)

    def loss(m, b):
        return nn.functional.cross_entropy(m(b[0]).transpose(1, 2), b[1])

    batch = TOKENS, TOKENS.roll(1, 1)
    small, large = brute(model, loss, batch)
    norms = measured(model, loss, batch)
    assert float(norms.small) == pytest.approx(small, rel=2e-5)
    assert float(norms.large) == pytest.approx(large, rel=2e-5)


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


class Windows(nn.Module):
    """A layer that sees several rows for each example, and one that sees one."""

    def __init__(self):
        super().__init__()
        self.inside, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.inside(x.flatten(0, 1)).view(len(x), -1, 8).mean(1))


REFUSED = {
    "BatchNorm1d '1': in training mode": (lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), VECTORS),
    "gradient of embedding.weight is not the sum": (BehindItsBack, TOKENS[:, 0]),
    "OfItsOwn,: it has parameters of its own besides": (OfItsOwn, VECTORS),
    "LSTM,: there is no formula": (lambda: nn.LSTM(8, 3), VECTORS),
    "GRU,: there is no formula": (lambda: nn.GRU(8, 3), VECTORS),
    "weights are complex": (lambda: nn.Linear(8, 3, dtype=torch.complex64), VECTORS.to(torch.complex64)),
    "different numbers of examples, 30 and 6|different numbers of examples, 6 and 30": (Windows, POSITIONS),
    "max_norm": (lambda: nn.Embedding(9, 8, max_norm=1.0), TOKENS),
    "parameters besides its weight and bias": (lambda: nn.utils.weight_norm(nn.Linear(8, 3)), VECTORS),
    "ParametrizationList": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)), VECTORS),
    "add_bias_kv": (lambda: Mixed(attention(add_bias_kv=True), lambda m, x: m(x, x, x)[0]), POSITIONS),
    "DataParallel": (lambda: nn.DataParallel(nn.Linear(8, 3)), VECTORS),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_measured_is_refused_with_the_reason(why):
    make, x = REFUSED[why]
    model = make()

    def loss(m, batch):
        out = m(batch[0])
        return (out[0] if isinstance(out, tuple) else out).abs().square().mean()

    with pytest.raises(Unsupported, match=why):
        measured(model, loss, (x,))


PENALTIES = {
    "on weights": lambda m, x: 0.01 * m[0].weight.square().sum(),
    "on gradients": lambda m, x: (
        torch.autograd.grad(m(x.requires_grad_()).sum(), x, create_graph=True)[0].square().sum()
    ),
}


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_term_of_the_loss_that_no_layer_sees_is_refused(penalty):
    model = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))

    def loss(m, b):
        return nn.functional.cross_entropy(m(b[0]), b[1]) + PENALTIES[penalty](m, b[0].clone())

    with pytest.raises(Unsupported, match=r"is not the sum|several gradients"):
        measured(model, loss, (VECTORS, torch.arange(N) % 3))


def test_as_many_positions_as_examples_are_told_apart_or_not_measured():
    x = torch.randn(N, N, 8)
    model = Mixed(nn.TransformerEncoderLayer(8, 2, 16, 0.0), lambda m, x: m(x.transpose(0, 1)).transpose(0, 1))
    with pytest.raises(NotNow, match="as many positions as examples"):
        measured(model, lambda m, b: m(b[0]).square().mean(), (x,))
    model = Mixed(encoder(), lambda m, x: m(x))
    assert measured(model, lambda m, b: m(b[0]).square().mean(), (x,)).large_size == N


def test_as_many_positions_as_examples_in_an_exchanged_order_are_not_measured():
    with pytest.raises(NotNow, match="as many positions as examples"):
        measured(PositionsFirst(), lambda m, b: m(b[0]).square().mean(), (torch.randn(N, N, 8),))


def test_as_many_positions_as_examples_in_parts_of_a_batch_are_not_measured():
    """A part of three examples of six positions looks like three positions of six examples."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))

    def loss(m, b):
        return m[2](torch.cat([m[:2](part) for part in b[0].chunk(2)])).square().mean()

    with pytest.raises(NotNow, match="positions first, where others were taken to have examples"):
        measured(model, loss, (torch.randn(N, N, 8),))


@pytest.mark.parametrize("layer", [nn.LayerNorm((N, 8)), nn.RMSNorm((N, 8)), nn.PReLU(N)], ids=repr)
def test_a_layer_of_one_order_is_not_taken_to_have_positions_first(layer):
    """Half of the batch counts, in a batch of as many examples as positions."""
    model, x = nn.Sequential(layer, nn.Flatten(), nn.Linear(8 * N, 3)), torch.randn(N, N, 8)
    norms = measured(model, lambda m, b: m(b[0][: N // 2]).square().mean(), (x,))
    assert norms.large_size == N // 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frozen_statistics_in_half_precision(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8).eval(), nn.Linear(8, 3))
    batch = (VECTORS,)
    expected = brute(model, lambda m, b: m(b[0]).square().mean(), batch)
    model.to(dtype)
    norms = measured(model, lambda m, b: m(b[0]).float().square().mean(), (VECTORS.to(dtype),))
    assert (float(norms.small), float(norms.large)) == pytest.approx(expected, rel=0.05)


def test_what_is_unfrozen_later_is_checked_then():
    model, x = BehindItsBack(), TOKENS[:, 0]
    model.head = nn.Linear(9, 3)
    forward = model.forward

    def loss(m, b):
        return nn.functional.cross_entropy(m.head(forward(b)), torch.arange(N) % 3)

    model.embedding.requires_grad_(False)
    source = InStep(model)
    for free in (False, True):
        model.embedding.requires_grad_(free)
        model.zero_grad()
        source.arm(N)
        loss(model, x).backward()
        if free:
            with pytest.raises(Unsupported, match="is not the sum"):
                source.norms()
        else:
            assert source.norms() is not None
        source.disarm()

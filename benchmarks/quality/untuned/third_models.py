"""The networks and losses of the third last look, as people write them: what no other task here has."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import NegativeBinomial
from torch.nn import functional as F

from benchmarks.quality.untuned.data import PADDING, WORDS
from benchmarks.quality.untuned.third_data import GROUPS, LETTERS, NODES, NONE


class DepthwiseBlock(nn.Module):
    """A depthwise convolution, LayerNorm, and an MLP of each pixel (Liu et al. 2022, arXiv:2201.03545)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.over_pixels = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.over_channels = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """x (n, width, side, side) -> the same."""
        inside = self.over_channels(self.norm(self.over_pixels(x).permute(0, 2, 3, 1)))
        return x + inside.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """Two stages of such blocks -> a logit for each of ten digits."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 2, 2), DepthwiseBlock(width),
            nn.Conv2d(width, 2 * width, 2, 2), DepthwiseBlock(2 * width), DepthwiseBlock(2 * width),
        )  # fmt: skip
        self.head = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))


class Attention(nn.Module):
    """Attention of one sequence to another, in heads."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.both, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, hidden: Tensor) -> Tensor:
        """x (n, tokens, width) sees of `memory` all that is not `hidden` (broadcast to n, heads, tokens, others)."""
        q = self.query(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.both(memory).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).masked_fill(hidden, -math.inf)
        return self.out((scores.softmax(3) @ v).transpose(1, 2).flatten(2))


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


class Corrector(nn.Module):
    """An encoder, and a decoder that attends to it (Vaswani et al. 2017, arXiv:1706.03762), a block of each."""

    def __init__(self, known: int, width: int = 32) -> None:
        super().__init__()
        self.known = known
        self.register_buffer("later", torch.ones(LETTERS, LETTERS, dtype=torch.bool).triu(1), persistent=False)
        self.letters, self.places = nn.Embedding(known + 2, width), nn.Embedding(LETTERS, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.encode, self.decode, self.cross = (Attention(width) for _ in range(3))
        self.encoded, self.decoded = _feed_forward(width), _feed_forward(width)
        self.head = nn.Linear(width, known)
        nn.init.normal_(self.letters.weight, std=0.1)
        nn.init.normal_(self.places.weight, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, 2 letters), the garbled ones and the decoder's -> logits (n, letters, known)."""
        missing = (x[:, :LETTERS] == self.known)[:, None, None]
        memory, seen = (letters + self.places.weight for letters in self.letters(x).split(LETTERS, 1))
        inside = self.norms[0](memory)
        memory = memory + self.encode(inside, inside, missing)
        memory = self.norms[1](memory + self.encoded(memory))
        inside = self.norms[2](seen)
        seen = seen + self.decode(inside, inside, self.later)
        seen = seen + self.cross(self.norms[3](seen), memory, missing)
        return self.head(self.norms[4](seen + self.decoded(seen)))


class GraphNet(nn.Module):
    """Each node beside the mean of its neighbours, layer by layer (Hamilton et al. 2017, arXiv:1706.02216)."""

    def __init__(self, width: int = 32, layers: int = 4) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(GROUPS, width), nn.Linear(width, GROUPS)
        self.own, self.others = (nn.ModuleList(nn.Linear(width, width) for _ in range(layers)) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """x (n, nodes, nodes + groups), adjacency and what is known -> logits (n, nodes, groups)."""
        joined, x = x.split((NODES, GROUPS), 2)
        joined, x = joined / joined.sum(2, keepdim=True).clamp(min=1), self.first(x)
        for own, others, norm in zip(self.own, self.others, self.norms, strict=True):
            x = x + norm(own(x) + others(joined @ x)).relu()
        return self.head(x)


class PointNet(nn.Module):
    """A network of each point, the largest over points, and another (Qi et al. 2017, arXiv:1612.00593)."""

    def __init__(self) -> None:
        super().__init__()
        self.of_points = nn.Sequential(
            nn.Conv1d(2, 24, 1), nn.BatchNorm1d(24), nn.ReLU(), nn.Conv1d(24, 48, 1), nn.BatchNorm1d(48), nn.ReLU(),
            nn.Conv1d(48, 96, 1), nn.BatchNorm1d(96), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(96, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        """x (n, points, 2) -> (n, 10)."""
        return self.head(self.of_points(x.transpose(1, 2)).amax(2))


class Llama(nn.Module):
    """A decoder with RMSNorm, rotated queries and keys, a gated MLP, and its head tied to the words' vectors.

    Source: Touvron et al. 2023, arXiv:2302.13971.
    """

    def __init__(self, words: int, context: int = 16, width: int = 32, blocks: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.words, self.head = nn.Embedding(words, width), nn.Linear(width, words, bias=False)
        self.qkv, self.out, self.gate, self.up, self.down = (
            nn.ModuleList(nn.Linear(before, after, bias=False) for _ in range(blocks))
            for before, after in (
                (width, 3 * width), (width, width), (width, 2 * width), (width, 2 * width), (2 * width, width)
            )
        )  # fmt: skip
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2 * blocks + 1))
        angles = torch.arange(context)[:, None] * 100.0 ** -torch.linspace(0, 1, width // heads // 2)
        self.register_buffer("cosine", angles.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sine", angles.sin().repeat(1, 2), persistent=False)
        self.register_buffer("later", torch.ones(context, context, dtype=torch.bool).triu(1), persistent=False)
        nn.init.normal_(self.words.weight, std=0.1)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        """x (n, words) -> logits (n, words, vocabulary)."""
        x = self.words(x)
        for i, (qkv, out, gate, up, down) in enumerate(
            zip(self.qkv, self.out, self.gate, self.up, self.down, strict=True)
        ):
            q, k, v = qkv(self.norms[2 * i](x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            q, k = self._rotated(q), self._rotated(k)
            scores = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).masked_fill(self.later, -math.inf)
            x = x + out((scores.softmax(3) @ v).transpose(1, 2).flatten(2))
            inside = self.norms[2 * i + 1](x)
            x = x + down(F.silu(gate(inside)) * up(inside))
        return self.head(self.norms[-1](x))

    def _rotated(self, x: Tensor) -> Tensor:
        """Each pair of numbers turned by an angle that grows with the place (Su et al. 2021, arXiv:2104.09864)."""
        first, second = x.chunk(2, 3)
        return x * self.cosine + torch.cat([-second, first], 3) * self.sine


class FactorizationMachine(nn.Module):
    """How much more one set of features is liked than another: a weight for each, and a product for each two.

    Sources: Rendle 2010, ICDM; of pairs, Rendle et al. 2009 (arXiv:1205.2618).
    """

    def __init__(self, codes: int, factors: int = 16) -> None:
        super().__init__()
        self.weights = nn.Embedding(codes, 1, padding_idx=PADDING)
        self.factors = nn.Embedding(codes, factors, padding_idx=PADDING)
        nn.init.zeros_(self.weights.weight)
        nn.init.normal_(self.factors.weight, std=0.1)
        with torch.no_grad():
            self.factors.weight[PADDING] = 0

    def forward(self, x: Tensor) -> Tensor:
        """x (n, 2, fields) -> the first's score less the second's (n)."""
        factors = self.factors(x)
        products = (factors.sum(2).square() - factors.square().sum(2)).sum(2) / 2
        score = self.weights(x).sum((2, 3)) + products
        return score[:, 0] - score[:, 1]


class LineReader(nn.Module):
    """Convolutions and an LSTM both ways along a line (Shi et al. 2015, arXiv:1507.05717): ten digits and a blank."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 48, (4, 1)),
            nn.ReLU(),
        )  # fmt: skip
        self.lstm = nn.LSTM(48, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, 11)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, 1, 14, pixels) -> logits (n, pixels / 4, 11), the blank first."""
        return self.head(self.lstm(self.convolutions(x).squeeze(2).transpose(1, 2))[0])


def ctc(logits: Tensor, digits: Tensor) -> Tensor:
    """NLL of the digits, wherever in the line they stand, per digit (Graves et al. 2006, ICML)."""
    n, steps, _ = logits.shape
    lengths = (digits != NONE).sum(1)
    log_probabilities = logits.log_softmax(2).transpose(0, 1)
    return F.ctc_loss(log_probabilities, digits + 1, torch.full((n,), steps), lengths, blank=0)


class Experts(nn.Module):
    """Two of several small networks for each example, and what it weighs them by.

    The weights of all are in one tensor, as libraries have them. Source: Shazeer et al. 2017, arXiv:1701.06538.
    """

    def __init__(self, inputs: int, outputs: int, experts: int = 6, width: int = 32) -> None:
        super().__init__()
        self.gate = nn.Linear(inputs, experts)
        self.first = nn.Parameter(torch.randn(experts, inputs, width) * math.sqrt(2 / inputs))
        self.last = nn.Parameter(torch.randn(experts, width, outputs) / math.sqrt(width))
        self.first_bias, self.last_bias = (nn.Parameter(torch.zeros(experts, 1, n)) for n in (width, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """x (n, inputs) -> (n, outputs)."""
        logits = self.gate(x)
        two, which = logits.topk(2, 1)
        shares = torch.zeros_like(logits).scatter(1, which, two.softmax(1))
        each = (x @ self.first + self.first_bias).relu() @ self.last + self.last_bias
        return torch.einsum("eno,ne->no", each, shares)


def hazards(logits: Tensor, seen: Tensor) -> Tensor:
    """NLL of a lifetime in intervals, each survived with a probability (Gensheimer and Narasimhan 2019, PeerJ 7).

    Args:
        logits: (n, intervals), of the hazards.
        seen: (n, 2), the last interval and whether it ends in death.
    """
    last, dies = seen.unbind(1)
    survived = F.softplus(logits).cumsum(1)  # up to the end of an interval
    before = F.pad(survived, (1, 0)).gather(1, last[:, None]).squeeze(1)
    return (before + dies * F.softplus(-logits.gather(1, last[:, None]).squeeze(1))).mean()


class Painter(nn.Module):
    """The colour of a place, from sines and cosines of it (Tancik et al. 2020, arXiv:2006.10739)."""

    def __init__(self, waves: int = 48, width: int = 64, scale: float = 4.0) -> None:
        super().__init__()
        self.register_buffer("waves", scale * torch.randn(2, waves))
        self.layers = nn.Sequential(
            nn.Linear(2 * waves, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (n, 2) -> (n, 3), between 0 and 1."""
        angles = 2 * math.pi * x @ self.waves
        return self.layers(torch.cat([angles.sin(), angles.cos()], 1)).sigmoid()


class TextConvolutions(nn.Module):
    """Convolutions over words, the largest over places (Kim 2014, arXiv:1408.5882): the logs of a mean and a spread."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width, padding_idx=PADDING)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, 16, size) for size in (2, 3, 4))
        self.dropout, self.head = nn.Dropout(0.3), nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, words) -> (n, 2)."""
        x = self.words(x).transpose(1, 2)
        return self.head(self.dropout(torch.cat([each(x).relu().amax(2) for each in self.convolutions], 1)))


def negative_binomial(output: Tensor, count: Tensor) -> Tensor:
    """NLL of counts whose variance is mean + mean² exp(spread), the output being (log mean, spread)."""
    log_mean, spread = output.unbind(1)
    law = NegativeBinomial((-spread).exp(), logits=log_mean + spread, validate_args=False)
    return -law.log_prob(count).mean()

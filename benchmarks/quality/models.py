"""The networks of the quality benchmark: small, so that thousands of steps take seconds on one thread."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Tabular(nn.Module):
    """Embedded categories beside numbers, then an MLP of 200 and 100, as the demo's fastai learner; no BatchNorm."""

    def __init__(self, sizes: Sequence[int], numbers: int) -> None:
        super().__init__()
        widths = [min(600, round(1.6 * n**0.56)) for n in sizes]  # fastai's rule of thumb
        self.embeds = nn.ModuleList(nn.Embedding(n, width) for n, width in zip(sizes, widths, strict=True))
        for embed in self.embeds:
            nn.init.trunc_normal_(embed.weight, std=0.01, a=-0.02, b=0.02)
        self.layers = nn.Sequential(
            nn.Linear(sum(widths) + numbers, 200), nn.ReLU(), nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (n, categories + numbers): the codes of the categories first, as floats, which are exact below 2^24."""
        codes = x[:, : len(self.embeds)].long()
        embedded = [embed(codes[:, i]) for i, embed in enumerate(self.embeds)]
        return self.layers(torch.cat([*embedded, x[:, len(self.embeds) :]], 1)).squeeze(1)


class DotProduct(nn.Module):
    """Rating = sigmoid(user . film + biases) between 0 and 5.5 stars (fastai's EmbeddingDotBias)."""

    def __init__(self, users: int, films: int, factors: int = 50) -> None:
        super().__init__()
        self.users, self.films = nn.Embedding(users, factors + 1), nn.Embedding(films, factors + 1)
        for embed in (self.users, self.films):
            nn.init.trunc_normal_(embed.weight, std=0.01, a=-0.02, b=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, 2): user and film; the last of each one's numbers is its bias."""
        user, film = self.users(x[:, 0]), self.films(x[:, 1])
        product = (user[:, :-1] * film[:, :-1]).sum(1) + user[:, -1] + film[:, -1]
        return torch.sigmoid(product) * 5.5


def cnn(batch_norm: bool) -> nn.Sequential:
    """Three convolutions of stride 2: 28 x 28 pixels -> 4 x 4 x 16 -> ten classes."""
    layers: list[nn.Module] = []
    for before, after in ((1, 8), (8, 16), (16, 16)):
        layers.append(nn.Conv2d(before, after, 3, 2, 1, bias=not batch_norm))
        layers += [nn.BatchNorm2d(after), nn.ReLU()] if batch_norm else [nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 16, 10))


class Block(nn.Module):
    """A pre-norm transformer block, causal."""

    def __init__(self, context: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.register_buffer("later", torch.ones(context, context, dtype=torch.bool).triu(1), persistent=False)
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """x (n, context, width)."""
        n, context, width = x.shape
        q, k, v = self.qkv(self.before_attention(x)).view(n, context, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # Written out: on a CPU, at so short a context, torch's fused attention takes more than twice as long.
        scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(self.later, -math.inf)
        mixed = scores.softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(n, context, width))
        return x + self.mlp(self.before_mlp(x))


class Transformer(nn.Module):
    """Predicts each next character from those before it."""

    def __init__(self, characters: int, context: int, width: int, blocks: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(characters, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(context, width, heads) for _ in range(blocks)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, characters))
        for embed in (self.embed, self.place):
            nn.init.normal_(embed.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, context) -> logits (n, context, characters)."""
        return self.head(self.blocks(self.embed(x) + self.place.weight))

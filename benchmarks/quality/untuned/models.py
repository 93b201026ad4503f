"""The networks of the untuned tasks: small, so that a run takes seconds on one thread."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.quality.models import Block
from benchmarks.quality.untuned.data import PADDING, WORDS


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def image_mlp(*widths: int) -> nn.Sequential:
    """The same on flattened images."""
    return nn.Sequential(nn.Flatten(), *mlp(*widths))


class Column(nn.Module):
    """(n, 1) -> (n)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(1)


def regression(*widths: int) -> nn.Sequential:
    """An MLP of one output."""
    return nn.Sequential(*mlp(*widths, 1), Column())


class Residual(nn.Module):
    """Two convolutions with BatchNorm beside what they are given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.first_norm, self.second_norm = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        inside = F.relu(self.first_norm(self.first(x)))
        return F.relu(x + self.second_norm(self.second(inside)))


def resnet() -> nn.Sequential:
    """14 x 14 pixels -> ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), Residual(8),
        nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), Residual(16),
        nn.Flatten(), nn.Linear(16 * 16, 10),
    )  # fmt: skip


def small_cnn(channels: int, side: int, classes: int) -> nn.Sequential:
    """Two convolutions of stride 2 and a linear layer."""
    after = -(-side // 4)
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, 2, 1), nn.ReLU(), nn.Conv2d(channels, 2 * channels, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(2 * channels * after * after, classes),
    )  # fmt: skip


class VisionTransformer(nn.Module):
    """Patches of 2 x 7 pixels, two blocks, the mean over patches."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(14, width), nn.Embedding(14, width)
        self.blocks = nn.Sequential(*(Block(14, width, 2) for _ in range(2)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))
        for block in self.blocks:
            block.later.zero_()  # every patch sees every other

    def forward(self, x: Tensor) -> Tensor:
        """x (n, 1, 14, 14)."""
        patches = x.reshape(-1, 7, 2, 2, 7).transpose(2, 3).reshape(-1, 14, 14)
        return self.head(self.blocks(self.embed(patches) + self.place.weight).mean(1))


class Mixer(nn.Module):
    """An MLP-Mixer (Tolstikhin et al. 2021): MLPs over patches and over channels in turn."""

    def __init__(self, patches: int = 14, width: int = 32) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(14, width), nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))
        self.over_patches = nn.ModuleList(mlp(patches, 2 * patches, patches) for _ in range(2))
        self.over_channels = nn.ModuleList(mlp(width, 2 * width, width) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """x (n, 1, 14, 14): a patch is a row."""
        x = self.embed(x.squeeze(1))
        for i, (patches, channels) in enumerate(zip(self.over_patches, self.over_channels, strict=True)):
            x = x + patches(self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + channels(self.norms[2 * i + 1](x))
        return self.head(x.mean(1))


class BagOfWords(nn.Module):
    """The mean of the words' vectors, and a linear layer."""

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        self.words, self.head = nn.EmbeddingBag(WORDS, width, padding_idx=PADDING), nn.Linear(width, classes)
        nn.init.normal_(self.words.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, words)."""
        return self.head(self.words(x))


class Recurrent(nn.Module):
    """A GRU over the words, its states averaged."""

    def __init__(self, classes: int, width: int = 24) -> None:
        super().__init__()
        self.words, self.gru = nn.Embedding(WORDS, width), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, words)."""
        return self.head(self.gru(self.words(x))[0].mean(1))


class SkipGram(nn.Module):
    """A word's vector times those of its neighbour and of strangers (Mikolov et al. 2013, arXiv:1310.4546)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.words, self.contexts = nn.Embedding(WORDS, width), nn.Embedding(WORDS, width)
        nn.init.normal_(self.words.weight, std=0.1)
        nn.init.normal_(self.contexts.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, 1 + others) -> logits (n, others)."""
        return (self.contexts(x[:, 1:]) @ self.words(x[:, :1]).transpose(1, 2)).squeeze(2)


class LogisticRegression(nn.Module):
    """A weight for each category and each number."""

    def __init__(self, sizes: list[int], numbers: int) -> None:
        super().__init__()
        self.codes, self.numbers = nn.ModuleList(nn.Embedding(n, 1) for n in sizes), nn.Linear(numbers, 1)
        for embed in self.codes:
            nn.init.zeros_(embed.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, categories + numbers)."""
        codes = x[:, : len(self.codes)].long()
        parts = [embed(codes[:, i]) for i, embed in enumerate(self.codes)]
        return (torch.stack(parts).sum(0) + self.numbers(x[:, len(self.codes) :])).squeeze(1)


class Autoencoder(nn.Module):
    """A variational autoencoder of images as rows (Kingma and Welling 2014, arXiv:1312.6114)."""

    def __init__(self, pixels: int = 196, hidden: int = 128, latent: int = 8) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(pixels, hidden, 2 * latent), mlp(latent, hidden, pixels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (n, pixels) -> (logits, mean, log variance of the latent variables)."""
        mean, log_variance = self.encoder(x).chunk(2, 1)
        drawn = mean + torch.randn_like(mean) * (log_variance / 2).exp() if self.training else mean
        return self.decoder(drawn), mean, log_variance

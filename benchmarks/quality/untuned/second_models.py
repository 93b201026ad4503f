"""The networks of the second last look, of layers as people take them: what no other task here has."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.quality.untuned.data import PADDING, WORDS
from benchmarks.quality.untuned.models import Column, small_cnn


class GroupNormed(nn.Module):
    """Two convolutions, GroupNorm before each, beside what they are given (He et al. 2016, arXiv:1603.05027)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(4, width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(4, width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Segmenter(nn.Module):
    """A U-Net of one level with GroupNorm (Ronneberger et al. 2015, arXiv:1505.04597): a logit for each pixel."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), GroupNormed(width))
        self.down = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), GroupNormed(2 * width), GroupNormed(2 * width))
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.last = nn.Sequential(nn.GroupNorm(4, width), nn.ReLU(), nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """x (n, 1, 14, 14) -> the same."""
        x = self.first(x)
        return self.last(x + self.up(self.down(x)))


def dropout_net() -> nn.Sequential:
    """74 numbers -> a logit, half of the hidden units dropped at a time."""
    return nn.Sequential(
        nn.Linear(74, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 64), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(64, 1), Column(),
    )  # fmt: skip


class WordModel(nn.Module):
    """An LSTM that predicts each next word; its output layer shares the words' vectors (Press and Wolf 2017)."""

    def __init__(self, words: int, width: int = 48) -> None:
        super().__init__()
        self.words, self.lstm = nn.Embedding(words, width), nn.LSTM(width, width, batch_first=True)
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(width, words)
        nn.init.normal_(self.words.weight, std=0.1)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        """x (n, words) -> logits (n, words, vocabulary)."""
        return self.head(self.dropout(self.lstm(self.dropout(self.words(x)))[0]))


class Siamese(nn.Module):
    """Squared distance of two images' vectors, both by the same network."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = small_cnn(8, 14, 16)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, 2, 14, 14) -> (n)."""
        return (self.embed(x[:, :1]) - self.embed(x[:, 1:])).square().sum(1)


class Forecaster(nn.Module):
    """Causal convolutions of growing dilation (Bai et al. 2018, arXiv:1803.01271); three quantiles at the last hour."""

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv1d(channels, width, 3)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, 3, dilation=2**i) for i in (1, 2, 3))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, channels, hours) -> (n, 3)."""
        x = self.first(x).relu()
        for convolution in self.convolutions:
            inside = convolution(x).relu()
            x = x[:, :, -inside.shape[2] :] + inside
        return self.head(x[:, :, -1])


def signal_net() -> nn.Sequential:
    """21 points -> three classes."""
    return nn.Sequential(
        nn.Conv1d(1, 16, 5, padding=2), nn.GELU(), nn.MaxPool1d(2), nn.Conv1d(16, 32, 3, padding=1), nn.GELU(),
        nn.Flatten(), nn.Linear(320, 3),
    )  # fmt: skip


class Encoder(nn.Module):
    """torch's own transformer layers over words, with dropout; the mean over the words there are, and a head."""

    def __init__(self, classes: int, width: int = 32, context: int = 32) -> None:
        super().__init__()
        self.words, self.place = nn.Embedding(WORDS, width, padding_idx=PADDING), nn.Embedding(context, width)
        layers = (
            nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.1, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.layers, self.head = nn.ModuleList(layers), nn.Linear(width, classes)
        nn.init.normal_(self.words.weight, std=0.1)
        nn.init.normal_(self.place.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, words), each text at least one word long."""
        missing = x == PADDING
        inside = self.words(x) + self.place.weight
        for layer in self.layers:
            inside = layer(inside, src_key_padding_mask=missing)
        present = (~missing)[:, :, None]
        return self.head(inside.mul(present).sum(1) / present.sum(1))


def contrastive(distance: Tensor, same: Tensor) -> Tensor:
    """Squared distance of the same; of others what they lack of a distance of 1, squared.

    Source: Hadsell, Chopra and LeCun 2006, CVPR, eq. 4.
    """
    apart = F.relu(1 - (distance + 1e-6).sqrt()).square()
    return (same * distance + (1 - same) * apart).mean()


def pinball(quantiles: Tensor, target: Tensor) -> Tensor:
    """The loss whose least is at the 10th, 50th and 90th percentile (Koenker and Bassett 1978)."""
    levels = torch.tensor([0.1, 0.5, 0.9])
    short = target[:, None] - quantiles
    return torch.maximum(levels * short, (levels - 1) * short).mean()

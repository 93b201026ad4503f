"""Models of the GPU benchmark, on made-up data: an MLP, a small ResNet with BatchNorm, transformer blocks on text."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

CLASSES, WORDS, LENGTH, PIXELS = 10, 1000, 128, 32
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """A model and its data.

    Attributes:
        make_model: with the same weights each time.
        make_inputs: so many random samples.
    """

    name: str
    make_model: Callable[[], nn.Module]
    make_inputs: Callable[[int], Tensor]

    def model(self, device: torch.device) -> nn.Module:
        torch.manual_seed(0)
        return self.make_model().to(device)

    def data(self, n: int) -> Made:
        torch.manual_seed(1)
        return Made(self.make_inputs(n), torch.randint(CLASSES, (n,)))


class Made(Dataset[tuple[Tensor, Tensor, int]]):
    """Inputs, random labels, and which sample it is."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        return self.inputs[i], self.labels[i], i


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, wider, 3, stride, 1, bias=False), nn.BatchNorm2d(wider), nn.ReLU(),
            nn.Conv2d(wider, wider, 3, 1, 1, bias=False), nn.BatchNorm2d(wider),
        )  # fmt: skip
        self.shortcut = nn.Conv2d(channels, wider, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class Text(nn.Module):
    """Transformer blocks over word embeddings, averaged."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, width), nn.Parameter(torch.zeros(length, width))
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.words(x) + self.places).mean(1))


def cases(quick: bool) -> dict[str, Case]:
    """By name; with `quick` a tenth as wide, for a CPU."""
    width, length, pixels = (16, 8, 8) if quick else (256, LENGTH, PIXELS)

    def mlp() -> nn.Module:
        layers = [layer for _ in range(3) for layer in (nn.Linear(8 * width, 8 * width), nn.ReLU())]
        return nn.Sequential(nn.Linear(512, 8 * width), nn.ReLU(), *layers, nn.Linear(8 * width, CLASSES))

    def cnn() -> nn.Module:
        n = width // 4
        stages = [Residual(n, 2 * n, 2), Residual(2 * n, 4 * n, 2), Residual(4 * n, 8 * n, 2)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * n, CLASSES)]
        return nn.Sequential(nn.Conv2d(3, n, 3, padding=1), nn.BatchNorm2d(n), nn.ReLU(), *stages, *head)

    found = (
        Case("MLP", mlp, lambda n: torch.randn(n, 512)),
        Case("CNN with BatchNorm", cnn, lambda n: torch.randn(n, 3, pixels, pixels)),
        Case("transformer", lambda: Text(width, length), lambda n: torch.randint(WORDS, (n, length))),
    )
    return {case.name: case for case in found}


def autocast(device: torch.device, precision: str) -> Callable[[], AbstractContextManager[Any]]:
    """Makes the context of a forward pass."""
    dtype = PRECISIONS[precision]
    return nullcontext if dtype is None else lambda: torch.autocast(device.type, dtype)


def batch_loss(model: nn.Module, batch: Any) -> Tensor:
    """Mean cross-entropy of a batch, wherever it lies."""
    device = next(model.parameters()).device
    return cross_entropy(model(batch[0].to(device, non_blocking=True)).float(), batch[1].to(device))

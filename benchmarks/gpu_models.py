"""Models and made-up data of the CUDA checks (`gpu.py`): an MLP, a CNN with BatchNorm, transformers; each in two sizes.

The small size is for trying the program on a CPU. Data are random, as their values matter to neither memory nor time;
labels are noise, so that the gradient noise scale is large.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

PRECISIONS = ("fp32", "bf16")


class Rows(Dataset):
    """Tensors of as many rows, and each row's number last; fetched a batch at a time, which spares the collating."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = (*tensors, torch.arange(len(tensors[0])))

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        return tuple(t[i] for t in self.tensors)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        rows = torch.as_tensor(indices)
        return tuple(t[rows] for t in self.tensors)


def as_fetched(batch: Any) -> Any:
    """To be `collate_fn` beside `Rows`."""
    return batch


class Texts(Dataset):
    """Sequences of different lengths, (tokens, class, number); `padded` makes batches of them."""

    def __init__(self, n: int, longest: int, vocabulary: int, classes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(longest // 8, longest + 1, (n,), generator=generator)
        self.texts = [torch.randint(1, vocabulary, (int(length),), generator=generator) for length in lengths]
        self.classes = torch.randint(classes, (n,), generator=generator)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        return self.texts[i], self.classes[i], i


def padded(rows: list[tuple[Tensor, Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of texts, as long as its longest."""
    texts, classes, numbers = zip(*rows, strict=True)
    return nn.utils.rnn.pad_sequence(list(texts), batch_first=True), torch.stack(classes), torch.tensor(numbers)


class Residual(nn.Module):
    """Two 3x3 convolutions with BatchNorm, and what came in added to it (ResNet's basic block)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        self.inside = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.inside(x))


class TextModel(nn.Module):
    """Embedding, transformer layers without dropout, mean over the tokens, a class."""

    def __init__(self, vocabulary: int, width: int, layers: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        layer = nn.TransformerEncoderLayer(width, max(1, width // 64), 4 * width, 0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(tokens)).mean(1))


def mlp(inputs: int, width: int, layers: int, classes: int = 10) -> nn.Module:
    """Without dropout or BatchNorm, so that a batch in pieces is the same batch."""
    found: list[nn.Module] = []
    for size in [inputs, *[width] * (layers - 1)]:
        found += [nn.Linear(size, width), nn.GELU()]
    return nn.Sequential(*found, nn.Linear(width, classes))


def cnn(width: int, blocks: int, classes: int = 10) -> nn.Module:
    """ResNet-like, with BatchNorm, on 3-channel images."""
    stem = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(
        *stem, *[Residual(width) for _ in range(blocks)], nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, classes),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model and data for it.

    Attributes:
        name: of the model.
        build: makes the model.
        draw: makes the inputs of n samples.
    """

    name: str
    build: Callable[[], nn.Module]
    draw: Callable[[int, torch.Generator], Tensor]

    def model(self, device: torch.device) -> nn.Module:
        torch.manual_seed(0)
        return self.build().to(device)

    def data(self, n: int) -> Rows:
        generator = torch.Generator().manual_seed(1)
        return Rows(self.draw(n, generator), torch.randint(10, (n,), generator=generator))


def cases(small: bool) -> list[Case]:
    """MLP, CNN with BatchNorm, transformer."""
    inputs, width, layers = (32, 64, 2) if small else (1024, 4096, 4)
    channels, blocks, side = (4, 1, 8) if small else (64, 4, 32)
    vocabulary, features, depth, length = (50, 16, 1, 8) if small else (8192, 256, 4, 128)
    return [
        Case("MLP", lambda: mlp(inputs, width, layers), lambda n, g: torch.randn(n, inputs, generator=g)),
        Case("CNN, BatchNorm", lambda: cnn(channels, blocks), lambda n, g: torch.randn(n, 3, side, side, generator=g)),
        Case(
            "transformer",
            lambda: TextModel(vocabulary, features, depth, 10),
            lambda n, g: torch.randint(1, vocabulary, (n, length), generator=g),
        ),
    ]  # fmt: skip


def loss_of(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """Cross-entropy of (inputs, class, number)."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def autocast(device: torch.device, precision: str) -> Callable[[], AbstractContextManager[Any]] | None:
    return (lambda: torch.autocast(device.type, torch.bfloat16)) if precision == "bf16" else None


def to(batch: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    return [t.to(device, non_blocking=True) for t in batch]

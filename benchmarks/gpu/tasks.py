"""What the GPU benchmark trains: models of three sizes, on data that is made there and can be learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common.rows import Rows
from benchmarks.gpu.cells import Setup

START = 64  # samples: the batch that learning rates are stated for


def as_it_is(batch: Any) -> Any:
    """collate_fn of batches that are cut as tensors."""
    return batch


@dataclass(frozen=True)
class Task:
    """One thing to learn.

    Attributes:
        make_model: fresh weights, from torch's global generator.
        make_rows: so many samples by a generator, on a device.
        lr: of AdamW at a batch of `START`.
        samples: for training, an epoch of them.
        epochs: length of a run.
    """

    name: str
    make_model: Callable[[], nn.Module]
    make_rows: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    lr: float
    samples: int
    epochs: int

    def model(self, setup: Setup, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.make_model().to(setup.device)

    def rows(self, setup: Setup, n: int | None = None, *, held_out: bool = False) -> Rows:
        """Samples to train on, or others of the same kind."""
        generator = torch.Generator(setup.device).manual_seed(int(held_out))
        return Rows(*self.make_rows(n or self.samples, generator))


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    """Mean cross-entropy of a batch, of every token where the target is a text."""
    out = model(batch[0])
    return F.cross_entropy(out.flatten(0, -2).float(), batch[1].flatten())


def tasks(setup: Setup) -> dict[str, Task]:
    """By name: one that the host bounds, one of ResNet-50's and one of GPT-2 small's size."""
    if setup.quick:
        made = (
            Task("host-bound MLP", lambda: mlp(16), vectors, 1e-3, 1024, 1),
            Task("ResNet-50", lambda: ResNet((1, 1), 2), images(4), 1e-3, 256, 1),
            Task("GPT-2 small", lambda: GPT(8, 1, 2), texts(4), 1e-3, 256, 1),
        )
    else:
        made = (
            Task("host-bound MLP", lambda: mlp(128), vectors, 1e-3, 1 << 18, 3),
            Task("ResNet-50", lambda: ResNet((3, 4, 6, 3), 64), images(64), 1e-3, 40_000, 1),
            Task("GPT-2 small", lambda: GPT(768, 12, 12), texts(64), 3e-4, 32_768, 1),
        )
    return {task.name: task for task in made}


CLASSES, INPUTS, WORDS, FOLLOWERS = 100, 64, 4096, 8


def fixed(*shape: int, device: torch.device) -> Tensor:
    """Random numbers that are the same in every run: what there is to learn."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7)).to(device)


def normal(*shape: int, by: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=by, device=by.device)


def vectors(n: int, by: torch.Generator) -> tuple[Tensor, Tensor]:
    """The class that a random network of one hidden layer gives a vector, noise added."""
    x = normal(n, INPUTS, by=by)
    hidden = torch.tanh(x @ fixed(INPUTS, 256, device=by.device) / 4)
    logits = hidden @ fixed(256, CLASSES, device=by.device) + 4 * normal(n, CLASSES, by=by)
    return x, logits.argmax(1)


def images(pixels: int) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """A coarse pattern for each class, moved, under noise."""

    def make(n: int, by: torch.Generator) -> tuple[Tensor, Tensor]:
        patterns = F.interpolate(fixed(CLASSES, 3, 8, 8, device=by.device), size=(pixels, pixels), mode="bilinear")
        y = torch.randint(CLASSES, (n,), generator=by, device=by.device)
        x = torch.empty(n, 3, pixels, pixels, device=by.device)
        for rows in torch.arange(n, device=by.device).split(4096):
            moved = int(torch.randint(pixels, (), generator=by, device=by.device))
            x[rows] = patterns[y[rows]].roll(moved, -1) + 2 * normal(len(rows), 3, pixels, pixels, by=by)
        return x, y

    return make


def texts(length: int) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    """Words of which each is followed by one of eight others, the first of them in half of all places."""

    def make(n: int, by: torch.Generator) -> tuple[Tensor, Tensor]:
        after = torch.randint(WORDS, (WORDS, FOLLOWERS), generator=torch.Generator().manual_seed(7)).to(by.device)
        words = torch.empty(n, length + 1, dtype=torch.int64, device=by.device)
        words[:, 0] = torch.randint(WORDS, (n,), generator=by, device=by.device)
        for place in range(length):
            which = torch.randint(2 * FOLLOWERS, (n,), generator=by, device=by.device)
            which = torch.where(which < FOLLOWERS, which, torch.zeros_like(which))
            words[:, place + 1] = after[words[:, place], which]
        return words[:, :-1].contiguous(), words[:, 1:].contiguous()

    return make


def mlp(width: int) -> nn.Module:
    """Eight thin layers, whose kernels take less time than their launches."""
    sizes = [INPUTS, *[width] * 7]
    layers = [layer for n in sizes for layer in (nn.Linear(n, width), nn.LayerNorm(width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut, as in ResNet-50."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        changes = stride > 1 or channels != out
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """Stages of so many bottlenecks; (3, 4, 6, 3) from 64 channels on are ResNet-50's."""

    def __init__(self, stages: Sequence[int], width: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
        for stage, count in enumerate(stages):
            for i in range(count):
                blocks.append(Bottleneck(channels, width << stage, 2 if i == 0 and stage else 1))
                channels = 4 * (width << stage)
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]
        self.layers = nn.Sequential(*blocks, *head)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Block(nn.Module):
    """Causal attention and a feed-forward layer, as in GPT-2."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.attend(self.before(x)).chunk(3, -1)
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(-2))
        return x + self.feed(self.between(x))


class GPT(nn.Module):
    """12 blocks of width 768 and 12 heads are GPT-2 small's; a smaller vocabulary."""

    def __init__(self, width: int, blocks: int, heads: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, width), nn.Embedding(1024, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, WORDS, bias=False)
        for embedding in (self.words, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        # A row of places for each text. Layers that see no samples cannot be measured per example.
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape)
        return self.head(self.norm(self.blocks(self.words(x) + self.places(places))))

"""Small models in a stack: every parameter has the runs as its first dimension, and so has every batch.

A loss takes the parameters of R runs, each of shape (R, ...), and R batches, and returns R mean losses. Runs do not
meet, so the gradient of the sum of all losses holds each run's own gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Parameters = Mapping[str, Tensor]  # each (R, ...)
Batch = tuple[Tensor, ...]  # each (R, samples, ...)
Loss = Callable[[Parameters, Batch], Tensor]  # (R,)


def start(shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> dict[str, Tensor]:
    """Parameters of one run: matrices of variance 1/inputs, tables of embeddings of variance 1/4, biases of 0."""
    made = {}
    for name, shape in shapes.items():
        scale = 0.0 if name.startswith("b") else 0.5 if name.startswith("embed") else 1 / math.sqrt(shape[0])
        made[name] = scale * torch.randn(shape, generator=generator)
    return made


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(R, n, inputs), (R, inputs, outputs), (R, outputs) -> (R, n, outputs)."""
    return torch.baddbmm(bias[:, None], x, weight)


def lookup(table: Tensor, index: Tensor) -> Tensor:
    """Rows of each run's own table: (R, rows, d) and (R, ...) -> (R, ..., d)."""
    runs, rows, width = table.shape
    first = torch.arange(runs).mul(rows).view(-1, *[1] * (index.dim() - 1))
    return F.embedding(index + first, table.reshape(runs * rows, width))


def mlp(p: Parameters, x: Tensor) -> Tensor:
    """One hidden layer."""
    return linear(torch.relu(linear(x, p["w1"], p["b1"])), p["w2"], p["b2"])


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """(R, n, classes) and (R, n) -> (R,)."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(len(logits), -1).mean(1)


def classified(p: Parameters, batch: Batch) -> Tensor:
    x, target = batch
    return cross_entropy(mlp(p, x), target)


def regressed(p: Parameters, batch: Batch) -> Tensor:
    """Mean squared error of a network of one hidden layer."""
    x, target = batch
    return (mlp(p, x) - target).square().mean((1, 2))


def next_letter(p: Parameters, batch: Batch) -> Tensor:
    """The last of the letters from those before it, by a network over their embeddings."""
    (letters,) = batch
    context = lookup(p["embed"], letters[:, :, :-1])
    return cross_entropy(mlp(p, context.flatten(2)), letters[:, :, -1])


def attended(p: Parameters, batch: Batch) -> Tensor:
    """Each letter from those before it, by one block of a transformer."""
    (letters,) = batch
    return cross_entropy(one_block(p, letters[:, :, :-1]), letters[:, :, 1:].flatten(1))


def one_block(p: Parameters, letters: Tensor) -> Tensor:
    """Attention by one head, and a network, on letters (R, n, length): logits (R, n * length, letters)."""
    runs, samples, length = letters.shape
    x = (lookup(p["embed"], letters) + p["embed_place"][:, None]).flatten(1, 2)
    query, key, value = torch.bmm(_normed(x), p["w_attend"]).view(runs * samples, length, -1).chunk(3, dim=-1)
    scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(later, -math.inf).softmax(-1) @ value
    x = x + torch.bmm(mixed.reshape(runs, samples * length, -1), p["w_mix"])
    x = x + mlp(p, _normed(x))
    return torch.bmm(_normed(x), p["w_out"])


def _normed(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


def bag(p: Parameters, batch: Batch) -> Tensor:
    """A yes or no from the sum of the words' embeddings."""
    words, target = batch
    logits = mlp(p, lookup(p["embed"], words).sum(2))[..., 0]
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)

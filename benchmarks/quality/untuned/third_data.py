"""Data of the third last look as tensors: tables from files, images and texts made anew, and published processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common.rows import Rows
from benchmarks.quality.untuned.data import ORDER, Halves, split
from benchmarks.quality.untuned.second_data import SecondData

SIDE = 20  # pixels of an image with two digits
LETTERS = 16  # of a window of text
DIGITS, LINE, NONE = (2, 4), 64, -1  # digits of a line, fewest and most; its pixels; what stands behind the last digit
NODES, GROUPS = 24, 3  # of a graph
POINTS = 32  # of an image
GENRES = 6  # of a film, at most
INTERVALS = 12  # that a lifetime is told apart by


def placed(images: Tensor, down: Tensor, right: Tensor, height: int, width: int) -> Tensor:
    """Images (n, 1, side, side), each at its own place on an empty canvas."""
    n, _, rows, columns = images.shape
    canvas = images.min().expand(n, 1, height, width).clone()
    at_rows = (down[:, None] + torch.arange(rows))[:, :, None]
    at_columns = (right[:, None] + torch.arange(columns))[:, None]
    canvas[torch.arange(n)[:, None, None], 0, at_rows, at_columns] = images[:, 0]
    return canvas


def overlaid(images: Tensor, digits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each image over another, both moved, and which of ten digits there are (Sabour et al. 2017, arXiv:1710.09829)."""
    other = torch.randperm(len(images), generator=generator)
    space = SIDE - images.shape[2] + 1
    down, right, other_down, other_right = torch.randint(0, space, (4, len(images)), generator=generator)
    first = placed(images, down, right, SIDE, SIDE)
    second = placed(images[other], other_down, other_right, SIDE, SIDE)
    there = torch.maximum(F.one_hot(digits, 10), F.one_hot(digits[other], 10)).float()
    return torch.maximum(first, second), there


def lines(images: Tensor, digits: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Lines of two to four digits, near each other or not: (images (n, 1, 14, LINE), digits and then NONE)."""
    fewest, most = DIGITS
    rows = torch.randint(0, len(images), (n, most), generator=generator)
    count = torch.randint(fewest, most + 1, (n,), generator=generator)
    right = torch.randint(0, 4, (n,), generator=generator)
    line = images.min().expand(n, 1, images.shape[2], LINE).clone()
    there = torch.arange(most) < count[:, None]
    for i in range(most):
        drawn = placed(images[rows[:, i]], torch.zeros_like(right), right, images.shape[2], LINE)
        line = torch.where(there[:, i, None, None, None], torch.maximum(line, drawn), line)
        right = right + torch.randint(10, 16, (n,), generator=generator)
    return line, torch.where(there, digits[rows], NONE)


def cloud(images: Tensor, generator: torch.Generator) -> Tensor:
    """Points (n, POINTS, 2) between -1 and 1, dense where an image is bright (Qi et al. 2017, arXiv:1612.00593)."""
    side = images.shape[2]
    greys = (images.flatten(1) * 0.3081 + 0.1307).clamp(0, 1) + 1e-6
    pixels = torch.multinomial(greys, POINTS, replacement=True, generator=generator)
    places = torch.stack([pixels % side, pixels // side], 2) + torch.rand(*pixels.shape, 2, generator=generator)
    return 2 * places / side - 1


def garbled(letters: Tensor, uniform: Tensor, strangers: Tensor, known: int) -> tuple[Tensor, Tensor]:
    """(letters with one in ten left out and one in ten wrong, and beside them what a decoder is given; the letters).

    Args:
        letters: (n, letters), codes below `known`.
        uniform: (n, letters), numbers of [0, 1): below .1 the letter is left out, below .2 it is a stranger.
        strangers: (n, letters), the wrong ones.
        known: the code of nothing. The next is the decoder's first.
    """
    kept = uniform >= 0.1
    seen = torch.where(kept & (uniform < 0.2), strangers, letters)
    order = (~kept).int().argsort(dim=1, stable=True)
    behind = torch.arange(letters.shape[1]) >= kept.sum(1, keepdim=True)
    seen = seen.gather(1, order).masked_fill(behind, known)
    begin = torch.full((len(letters), 1), known + 1)
    return torch.cat([seen, begin, letters[:, :-1]], 1), letters


class Garbled(Rows):
    """Windows of letters, garbled anew whenever they are fetched."""

    def __init__(self, letters: Tensor, known: int) -> None:
        super().__init__(letters)
        self._known = known

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        (letters,) = super().__getitems__(indices)
        strangers = torch.randint(0, self._known, letters.shape)
        return garbled(letters, torch.rand(letters.shape), strangers, self._known)


def graphs(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Graphs of three groups, one node of each being known: (adjacency beside the known groups, the group of each).

    A node is joined to another of its group with probability .6, and to one of another with .2. The process is that of
    CLUSTER of Dwivedi et al. 2020 (arXiv:2003.00982), smaller.
    """
    group = torch.randint(0, GROUPS, (n, NODES), generator=generator)
    group[:, :GROUPS] = torch.arange(GROUPS)
    joined = torch.where(group[:, :, None] == group[:, None], 0.6, 0.2)
    upper = (torch.rand(n, NODES, NODES, generator=generator) < joined).float().triu(1)
    known = torch.zeros(n, NODES, GROUPS)
    known[:, range(GROUPS), range(GROUPS)] = 1
    return torch.cat([upper + upper.transpose(1, 2), known], 2), group


def lifetimes(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """People of ten numbers, and (the interval in which they are last seen, 1 if they die then).

    The log of the risk is a hill over two of the numbers (Katzman et al. 2018, arXiv:1606.00931), times of death are
    exponential (Bender et al. 2005, Statistics in Medicine 24), and so are those at which people leave unseen.
    """
    x = 2 * torch.rand(n, 10, generator=generator) - 1
    risk = math.log(5) * (-x[:, :2].square().sum(1) / 0.5).exp()
    death, leave = (-torch.rand(n, generator=generator).clamp(min=1e-6).log() for _ in range(2))
    death, leave = death / risk.exp(), 2 * leave
    edges = 2.5 * (torch.arange(1, INTERVALS) / INTERVALS) ** 2  # of the intervals; the last has no end
    seen = torch.bucketize(torch.minimum(death, leave), edges)
    return x, torch.stack([seen, (death <= leave).long()], 1)


class Preferred(Rows):
    """Pairs of a person and a liked film, each beside another film drawn anew whenever it is fetched.

    Args:
        pairs: (n, 2), rows of the other two.
        people: (people, fields), codes.
        films: (films, fields), codes.
    """

    def __init__(self, pairs: Tensor, people: Tensor, films: Tensor) -> None:
        super().__init__(pairs)
        self._people, self._films = people, films

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        (pairs,) = super().__getitems__(indices)
        return self.beside(pairs, torch.rand(len(pairs)))

    def beside(self, pairs: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """(codes (n, 2, fields) of the person with the liked film and with one drawn by these numbers; ones)."""
        drawn = (uniform * len(self._films)).long()
        person = self._people[pairs[:, 0]]
        x = torch.stack([torch.cat([person, self._films[film]], 1) for film in (pairs[:, 1], drawn)], 1)
        return x, torch.ones(len(pairs))


class ThirdData:
    """Everything that the tasks of the third last look are made of, read when first asked for.

    Args:
        folder: holds reviews.parquet, and movielens.parquet, movielens_users.parquet and movielens_items.parquet.
        second: that of the tasks of the second look.
    """

    def __init__(self, folder: Path, second: SecondData) -> None:
        self._folder, self.second, self.data = folder, second, second.data

    def _images(self, first: int, n: int) -> tuple[Tensor, Tensor]:
        """n of MNIST's images for training, from this one on."""
        x, y = self.data.images.train.tensors
        return x[first : first + n], y[first : first + n]

    @cached_property
    def overlaid(self) -> Halves:
        """12,000 images of two digits, one over the other."""
        generator = torch.Generator().manual_seed(ORDER)
        train, held = self._images(20_000, 12_000), self.data.images.held
        return Halves(Rows(*overlaid(*train, generator)), overlaid(*held, generator))

    @cached_property
    def lines(self) -> Halves:
        """8,000 lines of digits."""
        generator = torch.Generator().manual_seed(ORDER)
        train, held = self._images(0, 20_000), self.data.images.held
        return Halves(Rows(*lines(*train, 8000, generator)), lines(*held, 3000, generator))

    @cached_property
    def clouds(self) -> Halves:
        """12,000 digits as points."""
        generator = torch.Generator().manual_seed(ORDER)
        (x, y), (held_x, held_y) = self._images(32_000, 12_000), self.data.images.held
        return Halves(Rows(cloud(x, generator), y), (cloud(held_x, generator), held_y))

    @cached_property
    def garbled(self) -> tuple[Garbled, tuple[Tensor, Tensor], int]:
        """(the reviews' letters to be put right, those held out, garbled once; how many letters there are)."""
        halves, known = self.data.characters(LETTERS, 40_000)
        letters, generator = halves.held[0], torch.Generator().manual_seed(ORDER)
        strangers = torch.randint(0, known, letters.shape, generator=generator)
        held = garbled(letters, torch.rand(letters.shape, generator=generator), strangers, known)
        return Garbled(halves.train.tensors[0], known), held, known

    @cached_property
    def graphs(self) -> Halves:
        generator = torch.Generator().manual_seed(ORDER)
        return Halves(Rows(*graphs(10_000, generator)), graphs(2000, generator))

    @cached_property
    def lifetimes(self) -> Halves:
        generator = torch.Generator().manual_seed(ORDER)
        return Halves(Rows(*lifetimes(20_000, generator)), lifetimes(10_000, generator))

    @cached_property
    def preferences(self) -> tuple[Preferred, tuple[Tensor, Tensor], int]:
        """(films that people gave four or five stars; such pairs held out, beside films drawn once; number of codes).

        The codes are those of one table: 0 is nothing, then people, their jobs, genders and decades, films and genres.
        """
        people, films = self._table("movielens_users"), self._table("movielens_items")
        columns = [people[name].astype("category").cat.codes for name in ("user_id", "occupation", "gender")]
        columns += [people["age"] // 10, films["movie_id"].astype("category").cat.codes]
        starts = np.cumsum([1, *(int(column.max()) + 1 for column in columns)])
        fields = [torch.from_numpy(c.to_numpy(int) + start) for c, start in zip(columns, starts[:-1], strict=True)]
        genres = torch.zeros(len(films), GENRES, dtype=torch.long)
        for row, flags in zip(genres, films.iloc[:, 5:].to_numpy(int), strict=True):
            codes = torch.from_numpy(np.flatnonzero(flags))[:GENRES] + int(starts[-1])
            row[: len(codes)] = codes
        liked = self._table("movielens").query("rating >= 4")
        rows = [
            frame[name].reset_index().set_index(name)["index"].loc[liked[name]].to_numpy()
            for frame, name in ((people, "user_id"), (films, "movie_id"))
        ]
        pairs = torch.from_numpy(np.stack(rows, 1))
        pairs = pairs[torch.from_numpy(np.random.default_rng(ORDER).permutation(len(pairs)))]
        known = torch.stack(fields[:4], 1), torch.cat([fields[4][:, None], genres], 1)
        uniform = torch.rand(5000, generator=torch.Generator().manual_seed(ORDER))
        held = Preferred(pairs[:5000], *known).beside(pairs[:5000], uniform)
        return Preferred(pairs[5000:], *known), held, int(starts[-1]) + films.shape[1] - 5

    @cached_property
    def picture(self) -> Halves:
        """Places between -1 and 1 of scikit-learn's picture of a palace, at half its size, and their colours."""
        colours = F.avg_pool2d(torch.tensor(load_sample_image("china.jpg")).float().permute(2, 0, 1) / 255, 2)
        _, height, width = colours.shape
        down, right = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        return split(torch.stack([right, down], 2).reshape(-1, 2), colours.flatten(1).T.contiguous(), held=8000)

    @cached_property
    def feedback(self) -> Halves:
        """The first 32 words of a review, and how many found it helpful."""
        words, _, _ = self.data.reviews
        frame = self._table("reviews").dropna(subset=["Review Text", "Department Name"])
        y = torch.from_numpy(frame["Positive Feedback Count"].to_numpy(float)).float()
        return Halves(Rows(words[4000:, :32], y[4000:]), (words[:4000, :32], y[:4000]))

    def _table(self, name: str) -> Any:
        import pandas as pd

        return pd.read_parquet(self._folder / f"{name}.parquet")

"""Data of the second last look as tensors: tables from files, and images and signals of a published process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import make_classification
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common.rows import Rows
from benchmarks.quality.untuned.data import ORDER, PADDING, RARE, Data, Halves, split, standardised

COMMON = 1000  # words that the language model tells apart; all others are one
EDUCATION = 1  # which of the census' categories gives one of the wanted numbers away
WANTED, OTHERS = [0, 2, 5], [1, 3, 4]  # of the census' numbers
HOURS, AHEAD = 48, 6  # seen of the weather, and how far ahead it is forecast


class Twins(Rows):
    """Images, each beside another drawn anew whenever it is fetched: of the same digit half of the time."""

    def __init__(self, images: Tensor, digits: Tensor) -> None:
        super().__init__(images, digits)
        self._members = [(digits == digit).nonzero().squeeze(1) for digit in range(10)]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        x, y = super().__getitems__(indices)
        return self.beside(x, y, torch.rand(len(x), 3))

    def beside(self, x: Tensor, y: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """(images (n, 2, side, side), 1 where both show the same digit), drawn by these numbers of [0, 1)."""
        same = uniform[:, 0] < 0.5
        digits = torch.where(same, y, (y + 1 + (9 * uniform[:, 1]).long()) % 10)
        rows = [
            self._members[d][int(u * len(self._members[d]))]
            for d, u in zip(digits.tolist(), uniform[:, 2].tolist(), strict=True)
        ]
        return torch.cat([x, self.tensors[0][torch.stack(rows)]], 1), same.float()


def rotated(images: Tensor, turns: Tensor) -> Tensor:
    """Images (n, 1, side, side), each turned about its middle by its own share of a full turn, black outside."""
    cosine, sine, zero = (2 * math.pi * turns).cos(), (2 * math.pi * turns).sin(), torch.zeros(len(turns))
    maps = torch.stack([torch.stack([cosine, -sine, zero], 1), torch.stack([sine, cosine, zero], 1)], 1)
    black = images.min()
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images - black, grid, align_corners=False) + black


def on_background(images: Tensor, uniform: Tensor) -> Tensor:
    """Each pixel the brighter of the image's and of its background's, both in [0, 1], made -1 to 1."""
    greys = (images * 0.3081 + 0.1307).clamp(0, 1)
    return 2 * torch.maximum(greys, uniform) - 1


def waveforms(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Signals (n, 1, 21), each a random mixture of two of three triangles under noise; which two is the class.

    Source: Breiman, Friedman, Olshen and Stone 1984, Classification and Regression Trees, p. 49.
    """
    generator = torch.Generator().manual_seed(seed)
    at = torch.arange(1.0, 22)
    triangles = torch.stack([(6 - (at - middle).abs()).clamp(min=0) for middle in (11, 15, 7)])
    y = torch.randint(0, 3, (n,), generator=generator)
    first, second = triangles[torch.tensor([0, 0, 1])[y]], triangles[torch.tensor([1, 2, 2])[y]]
    share = torch.rand(n, 1, generator=generator)
    x = share * first + (1 - share) * second + torch.randn(n, 21, generator=generator)
    return ((x - 2) / 2)[:, None], y


class SecondData:
    """Everything that the tasks of the second last look are made of, read when first asked for.

    Args:
        folder: holds adult.parquet, reviews.parquet, protein.parquet and weather.csv.
        data: that of the other tasks.
    """

    def __init__(self, folder: Path, data: Data) -> None:
        self._folder, self.data = folder, data

    def _images(self, n: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The last n of MNIST's images for training, which few other tasks see, and those held out."""
        x, y = self.data.images.train.tensors
        return (x[-n:], y[-n:]), self.data.images.held

    @cached_property
    def rotated(self) -> Halves:
        """12,000 digits, each turned once by any angle (Larochelle et al. 2007, ICML)."""
        generator = torch.Generator().manual_seed(ORDER)
        (x, y), (held_x, held_y) = self._images(12_000)
        turned, held = (rotated(images, torch.rand(len(images), generator=generator)) for images in (x, held_x))
        return Halves(Rows(turned, y), (held, held_y))

    @cached_property
    def on_background(self) -> Halves:
        """20,000 digits, each on uniform noise of its own (Larochelle et al. 2007, ICML)."""
        generator = torch.Generator().manual_seed(ORDER)
        (x, y), (held_x, held_y) = self._images(20_000)
        noisy, held = (on_background(i, torch.rand(i.shape, generator=generator)) for i in (x, held_x))
        return Halves(Rows(noisy, y), (held, held_y))

    @cached_property
    def twins(self) -> tuple[Twins, tuple[Tensor, Tensor]]:
        """Digits on a background in pairs, and pairs of the held-out ones, drawn once."""
        train, held = self.on_background.train.tensors, self.on_background.held
        uniform = torch.rand(len(held[0]), 3, generator=torch.Generator().manual_seed(ORDER))
        return Twins(*train), Twins(*held).beside(*held, uniform)

    @cached_property
    def clusters(self) -> Halves:
        """Ten classes of three clusters each in 40 columns, a label in twenty drawn at random (Guyon 2003)."""
        x, y = make_classification(
            30_000, 40, n_informative=12, n_redundant=8, n_classes=10, n_clusters_per_class=3, flip_y=0.05,
            class_sep=1.5, random_state=ORDER,
        )  # fmt: skip
        return split(standardised(torch.from_numpy(x).float()), torch.from_numpy(y).long(), held=10_000)

    @cached_property
    def hidden(self) -> Halves:
        """Rotated digits on a background, and which pixels are the digit's (both (n, 1, 14, 14))."""
        generator = torch.Generator().manual_seed(ORDER + 1)
        halves = self.rotated
        found = []
        for x in (halves.train.tensors[0], halves.held[0]):
            mask = (x * 0.3081 + 0.1307 > 0.4).float()
            found.append((on_background(x, torch.rand(x.shape, generator=generator)), mask))
        return Halves(Rows(*found[0]), found[1])

    @cached_property
    def census(self) -> Halves:
        """Age, years of education and hours of work of the census' people, from all else that is known of them."""
        halves, sizes = self.data.adult
        found = []
        for x, _ in (halves.train.tensors, halves.held):
            codes, numbers = x[:, : len(sizes)].long(), x[:, len(sizes) :]
            flags = [F.one_hot(codes[:, i], size) for i, size in enumerate(sizes) if i != EDUCATION]
            found.append((torch.cat([*flags, numbers[:, OTHERS]], 1).float(), numbers[:, WANTED]))
        return Halves(Rows(*found[0]), found[1])

    @cached_property
    def protein(self) -> Halves:
        """Which proteins share an ancestor, one pair in 112 (KDD Cup 2004)."""
        frame = self._table("protein")
        x = standardised(torch.tensor(frame.iloc[:, 3:].to_numpy(float)).float()).clamp(-5, 5)
        y = torch.tensor(frame["target"].to_numpy(float)).float()
        return split(x, y, held=45_751)

    @cached_property
    def words(self) -> Halves:
        """The reviews word by word, in windows of 16: each word's successor."""
        words, _, _ = self.data.reviews
        stream = words[words != PADDING]
        stream = torch.where(stream < COMMON, stream, RARE)
        windows = stream.unfold(0, 17, 16)[:34_000]
        return split(windows[:, :-1].contiguous(), windows[:, 1:].contiguous(), held=4000)

    @cached_property
    def weather(self) -> Halves:
        """The temperature in 6 hours less that of now, from 48 hours of weather at New York's three airports in 2013.

        The end of every month is held out.
        """
        import pandas as pd

        frame = pd.read_csv(self._folder / "weather.csv")
        names = ["temp", "dewp", "humid", "wind_speed", "precip", "pressure"]
        found: list[list[Tensor]] = [[], [], [], []]  # to learn from: x, y; held out: x, y
        for _, rows in frame.groupby("origin"):
            values = torch.tensor(rows[names].interpolate(limit_direction="both").to_numpy(float)).float()
            values[:, 3].clamp_(max=60)  # miles an hour: one entry says 1,048
            angle = torch.tensor(rows["hour"].to_numpy(float)).float() * (2 * math.pi / 24)
            change = (values[HOURS - 1 + AHEAD :, 0] - values[HOURS - 1 : -AHEAD, 0]) / 10
            seen = torch.cat([standardised(values), angle.sin()[:, None], angle.cos()[:, None]], 1)
            windows = seen[:-AHEAD].unfold(0, HOURS, 1)
            days = torch.tensor(rows["day"].to_numpy()[HOURS - 1 : -AHEAD].copy())
            for i, chosen in enumerate((days <= 22, days >= 26)):  # no window lies in both
                found[2 * i] += [windows[chosen]]
                found[2 * i + 1] += [change[chosen]]
        x, y, held_x, held_y = map(torch.cat, found)
        return Halves(Rows(x, y), (held_x, held_y))

    @cached_property
    def waveforms(self) -> Halves:
        return Halves(Rows(*waveforms(30_000, ORDER)), waveforms(10_000, ORDER + 1))

    @cached_property
    def ratings(self) -> Halves:
        """The first 32 words of 9,000 reviews, and how many stars of five were given."""
        words, _, _ = self.data.reviews
        stars = self._table("reviews").dropna(subset=["Review Text", "Department Name"])["Rating"].to_numpy(copy=True)
        y = torch.from_numpy(stars).long() - 1
        return Halves(Rows(words[-9000:, :32], y[-9000:]), (words[:4000, :32], y[:4000]))

    @cached_property
    def departments(self) -> Rows:
        """The reviews between them, and which department sells what is reviewed: to learn from before the ratings."""
        words, departments, _ = self.data.reviews
        return Rows(words[4000:-9000, :32], departments[4000:-9000])

    def _table(self, name: str) -> Any:
        import pandas as pd

        return pd.read_parquet(self._folder / f"{name}.parquet")

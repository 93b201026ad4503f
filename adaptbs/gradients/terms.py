"""A parameter's gradient as a sum of terms, one for each example: their squared norms, without storing the terms.

The gradient of a linear layer's weight is sum_i sum_t g_it x_it', over examples i and positions t. The squared norm of
example i's term follows from its x and g, and the term, as large as the weight, is never stored (Goodfellow 2015,
arXiv:1510.01799; for sequences Li et al. 2022, arXiv:2110.05679).

Every kind of term has the same methods: `squared()`, the sum over examples of the squared norms; `total()`, the
parameter's gradient, to check them by; `joined(other)`, the terms of a parameter that the same examples use twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from .mean_gradient import HALF, dense

T = TypeVar("T", bound="Term")

WRITING = 64  # number of multiplications that take as long as writing and reading one number
# Numbers in the largest intermediate result. To stay below it, examples are processed in chunks.
AT_ONCE = 2**24
AT_ONCE_ON_CPU = 2**20  # few enough to be still in the CPU's caches when they are read again


class Unsupported(Exception):
    """The model cannot be measured in its step. The message says why."""


class NotNow(Unsupported):
    """This step cannot be measured. Another one may be."""


class Term(Protocol):
    """Terms c_1 ... c_n of a parameter's gradient, one for each example."""

    @property
    def examples(self) -> int: ...
    def squared(self) -> Tensor: ...
    def total(self) -> Tensor: ...
    def joined(self, other: Term) -> Term: ...


@dataclass
class Stored:
    """The terms themselves, for small parameters: `values` has shape (n, *shape of the parameter)."""

    values: Tensor

    @property
    def examples(self) -> int:
        return self.values.shape[0]

    def squared(self) -> Tensor:
        return squared(self.values)

    def total(self) -> Tensor:
        return dense(self.values).sum(0)

    def joined(self, other: Term) -> Term:
        return Stored(dense(self.values) + dense(same_kind(self, other).values))


class RowRange(NamedTuple):
    """Rows first:stop of a parameter that has `total` rows."""

    first: int
    stop: int
    total: int


@dataclass
class OuterProducts:
    """sum_t g_t x_t' of each example, from x (n, T, in) and g (n, T, out).

    Attributes:
        rows: rows of the parameter that the terms belong to; None for all of them.
    """

    x: Tensor
    g: Tensor
    rows: RowRange | None = None

    @property
    def examples(self) -> int:
        return self.x.shape[0]

    def squared(self) -> Tensor:
        (_, positions, inputs), outputs = self.x.shape, self.g.shape[2]
        if positions == 1:
            sizes = sizes_of(self.x) * sizes_of(self.g)
            return sizes.dot(sizes)
        most = max(outer_numbers(positions, inputs, outputs), positions * inputs, positions * outputs)
        return in_chunks(squared_outer, most, self.x, self.g)

    def total(self) -> Tensor:
        whole = dense(self.g).flatten(0, 1).mT @ dense(self.x).flatten(0, 1)
        if self.rows is None:
            return whole
        above, below = self.rows.first, self.rows.total - self.rows.stop
        return torch.nn.functional.pad(whole, (0, 0, above, below))

    def joined(self, other: Term) -> Term:
        if not isinstance(other, OuterProducts):
            return other.joined(self)
        return side_by_side([self, other]) if other.rows == self.rows else Blocks([self, other])

    @property
    def span(self) -> RowRange:
        """The rows of the parameter that the terms belong to."""
        return self.rows or RowRange(0, self.g.shape[2], self.g.shape[2])

    def cut(self, edges: Sequence[int]) -> Iterator[OuterProducts]:
        """These terms in parts, each of the rows between two of the edges."""
        first, stop, total = self.span
        for start, end in pairwise(edge for edge in edges if first <= edge <= stop):
            yield OuterProducts(self.x, self.g[..., start - first : end - first], RowRange(start, end, total))


def side_by_side(uses: Sequence[OuterProducts]) -> OuterProducts:
    """The terms of several uses of the same rows by the same examples."""
    if len(uses) == 1:
        return uses[0]
    return OuterProducts(torch.cat([use.x for use in uses], 1), torch.cat([use.g for use in uses], 1), uses[0].rows)


def squared_outer(x: Tensor, g: Tensor) -> Tensor:
    """sum_i |sum_t g_it x_it'|^2, from x (n, T, in) and g (n, T, out). Uses Gram matrices if that is less work."""
    if _by_gram(x.shape[1], x.shape[2], g.shape[2]):
        return torch.dot((x @ x.mT).flatten(), (g @ g.mT).flatten())
    return squared(g.mT @ x)


def outer_numbers(positions: int, inputs: int, outputs: int) -> int:
    """Numbers in the result of `squared_outer`'s product for one example."""
    return positions**2 if _by_gram(positions, inputs, outputs) else inputs * outputs


def _by_gram(positions: int, inputs: int, outputs: int) -> bool:
    """True if two Gram matrices, T x T, are less work than the weight's gradient, in x out."""
    gram = positions**2 * (inputs + outputs + 2 * WRITING)
    return gram <= inputs * outputs * (positions + WRITING)


class Blocks:
    """Terms of several rows of a weight each. Attention has them if query, key and value differ.

    Calls may differ in how they divide the rows, as of one attention to itself and to something else. So all are cut
    at the same rows. The squares of what belongs to different rows add up.
    """

    def __init__(self, blocks: Sequence[OuterProducts]) -> None:
        edges = sorted({edge for block in blocks for edge in block.span[:2]})
        uses: dict[RowRange, list[OuterProducts]] = {}
        for block in blocks:
            for part in block.cut(edges):
                uses.setdefault(part.span, []).append(part)
        self._blocks = [side_by_side(each) for each in uses.values()]

    @property
    def examples(self) -> int:
        return self._blocks[0].examples

    def squared(self) -> Tensor:
        return torch.stack([block.squared() for block in self._blocks]).sum(0)

    def total(self) -> Tensor:
        return torch.stack([block.total() for block in self._blocks]).sum(0)

    def joined(self, other: Term) -> Term:
        also = other._blocks if isinstance(other, Blocks) else [same_kind(self._blocks[0], other)]
        return Blocks([*self._blocks, *also])


def same_kind(term: T, other: Term) -> T:
    """`other`, if it is of the same kind as `term`. Raises Unsupported if it is not."""
    if not isinstance(other, type(term)):
        raise Unsupported("two kinds of layers share a weight")
    return other


def sizes_of(values: Tensor) -> Tensor:
    """The norm of each example's values, shape (n,), in float32 or better."""
    sizes: Tensor = torch.linalg.vector_norm(
        values.flatten(1), dim=1, dtype=torch.float32 if values.dtype in HALF else None
    )
    return sizes


def squared(values: Tensor) -> Tensor:
    """Sum of squares, in float32 or better."""
    values = values.to_dense() if values.is_sparse else values
    values = torch.view_as_real(values) if values.is_complex() else values
    if values.is_cpu and values.is_contiguous() and values.dtype not in HALF and values.numel() <= AT_ONCE_ON_CPU:
        flat = values.view(-1)
        return torch.dot(flat, flat)  # half the time of a norm and its square, where there is little to add up
    wider = torch.float32 if values.dtype in HALF else None
    total: Tensor = torch.linalg.vector_norm(values, dtype=wider).square()
    return total


def at_once(values: Tensor) -> int:
    """Numbers in the largest intermediate result on the device of `values`."""
    return AT_ONCE_ON_CPU if values.is_cpu else AT_ONCE


def in_chunks(rule: Callable[..., Tensor], each: int, *tensors: Tensor) -> Tensor:
    """Apply `rule` to chunks of examples, so that its intermediate results stay within `at_once` numbers.

    Half precision becomes float32 chunk by chunk.

    Args:
        rule: function of slices of the tensors that returns one number. The numbers of all slices are added up.
        each: numbers in the largest intermediate result for one example.
        tensors: tensors with the examples along their first dimension.
    """
    size = max(1, at_once(tensors[0]) // max(1, each))
    if size >= len(tensors[0]):
        return rule(*map(dense, tensors))
    chunks = zip(*(torch.split(t, size) for t in tensors), strict=True)
    return torch.stack([rule(*map(dense, chunk)) for chunk in chunks]).sum()

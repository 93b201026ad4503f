"""Terms of a table that is looked up, and of one that a linear layer shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .mean_gradient import dense
from .terms import OuterProducts, Term, in_chunks, same_kind, squared


@dataclass
class Rows:
    """Rows of a table of `entries` rows, looked up by tokens (n, T), with their gradients g (n, T, features)."""

    tokens: Tensor
    g: Tensor
    entries: int

    @property
    def examples(self) -> int:
        return self.tokens.shape[0]

    def squared(self) -> Tensor:
        if self.tokens.shape[1] == 1:
            return squared(self.g)
        return in_chunks(_squared_rows, self.g[0].numel(), self.tokens, self.g)

    def total(self) -> Tensor:
        g = dense(self.g).flatten(0, 1)
        return g.new_zeros(self.entries, g.shape[1]).index_add_(0, self.tokens.flatten(), g)

    def joined(self, other: Term) -> Term:
        if isinstance(other, Tied):
            return other.joined(self)
        if isinstance(other, OuterProducts) and other.rows is None:
            return Tied(other, [self])
        also = same_kind(self, other)
        return Rows(torch.cat([self.tokens, also.tokens], 1), torch.cat([self.g, also.g], 1), self.entries)


def _squared_rows(tokens: Tensor, g: Tensor) -> Tensor:
    """Add up the gradients of an example's equal tokens, which share a row, and square. Takes O(T features) memory."""
    runs, order = run_numbers(tokens)
    g = g.gather(1, order[..., None].expand_as(g))
    sums = torch.zeros_like(g).flatten(0, 1).index_add_(0, runs, g.flatten(0, 1))
    return squared(sums)


def run_numbers(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Number the runs of equal tokens in each sorted row of `tokens` (n, T).

    Returns:
        The number of each sorted token's run, flat, shape (n T,), different in each row; and the order that sorts them.
    """
    ordered, order = tokens.sort(1)
    begins = torch.zeros_like(ordered)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = torch.arange(len(tokens), device=tokens.device)[:, None] * tokens.shape[1]
    return (begins.cumsum(1) + first).flatten(), order


class Tied:
    """A weight that an embedding and a linear layer share, as in most language models.

    |a + b|^2 = |a|^2 + |b|^2 + 2 a.b, with a.b = sum_st (g_s)[token_t] (x_s . h_t) for the linear layer's x and g, and
    the table's h.
    """

    def __init__(self, outer: OuterProducts, rows: Sequence[Rows]) -> None:
        self._outer, self._rows = outer, list(rows)

    @property
    def examples(self) -> int:
        return self._outer.examples

    def squared(self) -> Tensor:
        first, *others = self._rows
        rows: Term = first
        for other in others:
            rows = rows.joined(other)
        assert isinstance(rows, Rows)
        x, g, tokens, h = self._outer.x, self._outer.g, rows.tokens, rows.g
        each = max(g[0].numel(), x.shape[1] * tokens.shape[1])
        return self._outer.squared() + rows.squared() + 2 * in_chunks(_cross, each, x, g, tokens, h)

    def total(self) -> Tensor:
        return self._outer.total() + sum(rows.total() for rows in self._rows)

    def joined(self, other: Term) -> Term:
        if isinstance(other, Rows):
            return Tied(self._outer, [*self._rows, other])
        return Tied(same_kind(self._outer, self._outer.joined(other)), self._rows)


def _cross(x: Tensor, g: Tensor, tokens: Tensor, h: Tensor) -> Tensor:
    """Inner products of sum_s g_s x_s' with the table's gradient, which has h_t in row token_t, added up."""
    at_tokens = g.gather(2, tokens[:, None].expand(-1, g.shape[1], -1))
    return torch.dot(at_tokens.flatten(), (x @ h.mT).flatten())

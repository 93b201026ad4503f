"""Embeddings that are looked up once for all examples of a batch, such as those of positions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .terms import Unsupported

TELLING = 4  # numbers; fewer may follow each other by chance


@dataclass
class Lookup:
    """A call of an embedding layer.

    Attributes:
        layer: the embedding.
        shape: shape of its output, with a dimension of one row before it where it is `flat`.
        flat: True if the output has two dimensions: positions [T, D], or a row for each example.
        inputs: inputs of the call, kept once the gradient has arrived, with the examples along their first dimension.
        row: the same as the layer was given them, with a dimension of one row.
        gradient: gradient of its output, kept if it is needed at the end of the pass.
    """

    layer: nn.Module
    shape: torch.Size
    flat: bool = False
    inputs: Sequence[Any] = ()
    row: Sequence[Any] = ()
    gradient: Tensor | None = None

    @property
    def is_one_row(self) -> bool:
        return self.shape[0] == 1

    def keep(self, inputs: Sequence[Any], gradient: Tensor, given: Sequence[Any] = ()) -> None:
        """Keep the inputs and the gradient until the end of the pass."""
        self.inputs, self.gradient, self.row = inputs, gradient, given
        if self.flat:
            self.row = self.inputs = [x[None] if isinstance(x, Tensor) else x for x in inputs]
            self.gradient = gradient[None]

    def drop(self) -> None:
        """Release the inputs and the gradient."""
        self.inputs, self.row, self.gradient = (), (), None


class SharedLookups:
    """Finds the terms of embeddings whose output has one row that all examples share.

    BERT, GPT-2 and nanoGPT look up positions once and add the result, shape [1, T, D] or [T, D], to that of the tokens,
    [n, T, D]. The gradient of the one row is a sum over examples. Each example's share of it is the gradient of the
    tokens' output, because all summands of a sum have the same gradient. If the two were combined in another way, these
    terms do not add up to the parameter's gradient. InStep compares the two before it relies on the terms.

    In a batch of one example every output has one row, and it is that example's.

    Rows [T, D] may be those of T examples as well, as of their labels. They are positions if no batch has that length.
    If one has, positions are known by their numbers, which follow each other. That is looked at once for a layer.
    """

    def __init__(self) -> None:
        self._lookups: list[Lookup] = []  # of the forward passes so far, in the order of the calls
        self._has_positions: dict[nn.Module, bool] = {}  # of layers whose output has two dimensions

    def note_call(self, layer: nn.Module, output: Tensor) -> Lookup | None:
        """Record a layer's call. Returns None if it is not a lookup of a row for each position."""
        if not isinstance(layer, nn.Embedding) or output.dim() < 2:
            return None
        flat = output.dim() == 2
        self._lookups.append(Lookup(layer, torch.Size((1, *output.shape)) if flat else output.shape, flat))
        return self._lookups[-1]

    def take_gradient(
        self,
        lookup: Lookup | None,
        given: Sequence[Any],
        inputs: Sequence[Any],
        gradient: Tensor,
        sizes: Collection[int],
    ) -> bool:
        """Take the gradient of a call. Returns True if its terms can be found only at the end of the pass.

        Args:
            lookup: what `note_call` returned.
            given: inputs of the call.
            inputs: the same, with the examples along their first dimension.
            gradient: gradient of its output, likewise.
            sizes: lengths that a batch may have.
        """
        if lookup is None or (lookup.flat and not self._are_positions(lookup, inputs, sizes)):
            return False
        if lookup.is_one_row:
            lookup.keep(inputs, gradient, given)
        elif any(other.is_one_row and other.shape[1:] == lookup.shape[1:] for other in self._lookups):
            lookup.keep((), gradient)
        return lookup.is_one_row

    def _are_positions(self, lookup: Lookup, inputs: Sequence[Any], sizes: Collection[int]) -> bool:
        """True if the rows of an output of two dimensions are positions, which others have for each example."""
        layer, known = lookup.layer, self._has_positions
        if not any(not other.flat and other.shape[1:] == lookup.shape[1:] for other in self._lookups):
            if layer not in known and len(inputs[0]) >= TELLING and len(inputs[0]) in sizes:
                known[layer] = _follow_each_other(inputs[0])
            if known.get(layer):
                raise Unsupported("an Embedding looks up numbers that follow each other, as of shared positions")
            return False
        if len(inputs[0]) not in sizes:
            known[layer] = True
        elif layer not in known:
            known[layer] = _follow_each_other(inputs[0])
        return known[layer]

    def settle(self, *, keeps_graph: bool) -> Iterator[tuple[nn.Module, list[Any], Tensor]]:
        """End a pass: yield each layer with one shared row, its inputs and its gradient, both with a row an example.

        Args:
            keeps_graph: True if another pass may go through the same calls.
        """
        lookups, self._lookups = self._lookups, list(self._lookups) if keeps_graph else []
        seen = [(lookup, lookup.inputs, lookup.row, lookup.gradient) for lookup in lookups]
        for lookup in lookups:
            lookup.drop()
        for i, (lookup, inputs, row, own) in enumerate(seen):
            if not lookup.is_one_row or own is None:
                continue
            # If the model is called several times in a pass, take the nearest call before this one, or else after it.
            alike = [
                gradient
                for other, _, _, gradient in (*reversed(seen[:i]), *seen[i:])
                if not other.is_one_row and other.shape[1:] == lookup.shape[1:] and gradient is not None
            ]
            gradient = alike[0] if alike else own
            yield lookup.layer, [_repeated(x, len(gradient)) for x in (row if alike else inputs)], gradient

    def clear(self) -> None:
        """Forget all calls."""
        self._lookups = []


def _follow_each_other(tokens: Tensor) -> bool:
    return bool((tokens.diff() == 1).all())  # waits for the device, once for a layer


def _repeated(x: Any, n: int) -> Any:
    return x.expand(n, *x.shape[1:]) if isinstance(x, Tensor) and x.dim() > 1 and len(x) == 1 else x

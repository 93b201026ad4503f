"""Embeddings that are looked up once for all examples, as of positions, and added to what each has of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Lookup:
    """A call of an embedding.

    Attributes:
        layer: the embedding.
        shape: of its output, with a dimension of one row before it where it is `flat`.
        flat: True if the output has two dimensions: positions [T, D], or a row for each example.
        inputs: of the call, once the gradient has arrived.
        gradient: of its output, kept where the end of the pass needs it.
    """

    layer: nn.Module
    shape: torch.Size
    flat: bool = False
    inputs: Sequence[Any] = ()
    gradient: Tensor | None = None

    @property
    def is_one_row(self) -> bool:
        return self.shape[0] == 1

    def keep(self, inputs: Sequence[Any], gradient: Tensor) -> None:
        """Keep what has arrived."""
        self.inputs, self.gradient = inputs, gradient
        if self.flat:
            self.inputs, self.gradient = [x[None] if isinstance(x, Tensor) else x for x in inputs], gradient[None]


class OnceForAll:
    """Finds the terms of embeddings whose output has one row for all examples.

    BERT, GPT-2 and nanoGPT look up positions once and add the result, shape [1, T, D] or [T, D], to that of the tokens,
    [n, T, D]. The gradient that arrives at the one row is a sum over examples. Example by example it is the gradient of
    the tokens' output, because the gradients of the summands of a sum are equal. Where the two were joined in another
    way, the terms found so do not add up to the parameter's gradient, which InStep compares before it relies on them.

    A batch of a single example has one row everywhere, and then each row is that example's.

    Rows [T, D] may be those of T examples as well, as of their labels. They are positions if no batch has that length.
    Where one has, positions are known by their numbers, which follow each other; that is looked at once for a layer.
    """

    def __init__(self) -> None:
        self._lookups: list[Lookup] = []  # of the forward passes so far, in their order
        self._has_positions: dict[nn.Module, bool] = {}  # of layers whose output has two dimensions

    def called(self, layer: nn.Module, output: Tensor) -> Lookup | None:
        """Take note of a layer's call; None if it is no lookup of a row for each position."""
        if not isinstance(layer, nn.Embedding) or output.dim() < 2:
            return None
        flat = output.dim() == 2
        self._lookups.append(Lookup(layer, torch.Size((1, *output.shape)) if flat else output.shape, flat))
        return self._lookups[-1]

    def waits(self, lookup: Lookup | None, inputs: Sequence[Any], gradient: Tensor, sizes: Collection[int]) -> bool:
        """True if the terms of this call are found at the end of the pass, from the gradient that has arrived now.

        Args:
            lookup: as noted when it was called.
            inputs: of the call.
            gradient: of its output.
            sizes: lengths that a batch may have.
        """
        if lookup is None or (lookup.flat and not self._are_positions(lookup, inputs, sizes)):
            return False
        if lookup.is_one_row:
            lookup.keep(inputs, gradient)
        elif any(other.is_one_row and other.shape[1:] == lookup.shape[1:] for other in self._lookups):
            lookup.keep((), gradient)
        return lookup.is_one_row

    def _are_positions(self, lookup: Lookup, inputs: Sequence[Any], sizes: Collection[int]) -> bool:
        """True if the rows of an output of two dimensions are positions, which others have for each example."""
        if not any(not other.flat and other.shape[1:] == lookup.shape[1:] for other in self._lookups):
            return False
        layer, known = lookup.layer, self._has_positions
        if len(inputs[0]) not in sizes:
            known[layer] = True
        elif layer not in known:
            known[layer] = bool((inputs[0].diff() == 1).all())  # waits for the device, once for a layer
        return known[layer]

    def settle(self) -> Iterator[tuple[nn.Module, list[Any], Tensor]]:
        """Each layer that waits, its inputs and its output's gradient with a row for each example."""
        lookups, self._lookups = self._lookups, []
        for i, lookup in enumerate(lookups):
            if not lookup.is_one_row or lookup.gradient is None:
                continue
            # Of a model that is called several times in a pass it is the nearest one before, or else behind.
            alike = [
                other.gradient
                for other in (*reversed(lookups[:i]), *lookups[i:])
                if not other.is_one_row and other.shape[1:] == lookup.shape[1:] and other.gradient is not None
            ]
            gradient = alike[0] if alike else lookup.gradient
            yield lookup.layer, [_repeated(x, len(gradient)) for x in lookup.inputs], gradient

    def clear(self) -> None:
        """Drop what has been seen."""
        self._lookups = []


def _repeated(x: Any, n: int) -> Any:
    return x.expand(n, *x.shape[1:]) if isinstance(x, Tensor) and x.dim() > 1 and len(x) == 1 else x

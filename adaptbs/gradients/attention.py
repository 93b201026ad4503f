"""The terms of nn.MultiheadAttention. It does not call its projections as layers, so the autograd graph is searched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from .checkpoints import packs
from .terms import OuterProducts, RowRange, Stored, Term, Unsupported
from .without_autocast import without_autocast

#: Where torch's nodes of a matrix product keep its first factor.
FACTOR = {"AddmmBackward0": "_saved_mat1", "MmBackward0": "_saved_self"}


def why_no_projections(layer: nn.MultiheadAttention) -> str | None:
    """The reason why an attention layer cannot be measured in the step; None if it can."""
    if layer.bias_k is not None or layer.bias_v is not None:
        return "add_bias_kv is not supported"
    return None


def watch_projections(
    layer: nn.MultiheadAttention,
    inputs: Sequence[Any],
    output: Tensor,
    announce: Callable[[Tensor], None],
    arrived: Callable[[Mapping[Tensor, Term]], None],
    guarded: Callable[[Callable[..., None]], Callable[..., None]],
) -> None:
    """Let `arrived` be called with the terms of each projection when its gradient arrives.

    Args:
        layer: the layer.
        inputs: query, key and value of the call.
        output: the attention's output.
        announce: called with each parameter whose terms will come.
        arrived: called with the terms of some parameters.
        guarded: makes a function that is safe to call within the user's backward pass.
    """
    query = inputs[0]
    if query.dim() != 3 or query.is_nested:
        raise Unsupported("MultiheadAttention: only batches of sequences of one length are supported")
    if packs() is not None:
        raise Unsupported("MultiheadAttention inside an activation checkpoint is not supported")
    examples = query.shape[0 if layer.batch_first else 1]
    biases = {layer.in_proj_weight: layer.in_proj_bias, layer.out_proj.weight: layer.out_proj.bias}
    if layer.in_proj_weight is None:
        biases |= {w: None for w in (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)}
        if layer.in_proj_bias is not None and layer.in_proj_bias.requires_grad:
            raise Unsupported("MultiheadAttention with kdim or vdim and a bias is not supported")
    weights = {weight for weight in biases if weight is not None}
    for node, weight, rows in products(output, inputs, weights):
        bias = biases[weight]

        def arrives(g: tuple[Tensor | None, ...], weight: Any = weight, bias: Any = bias, rows: Any = rows) -> None:
            if g[0] is None:
                return
            # The hook must not hold its own node. That cycle would keep the tensors of a pass that never ended.
            node: Any = torch._C._current_autograd_node()
            x = getattr(node, FACTOR[node.name()])
            # Attention works on positions x examples, flattened.
            x, out = (t.reshape(-1, examples, t.shape[-1]).transpose(0, 1) for t in (x, g[0]))
            with without_autocast(out.device.type):
                if weight.requires_grad:
                    arrived({weight: OuterProducts(x, out, rows)})
                if bias is not None and bias.requires_grad:
                    arrived({bias: _in_rows(out.sum(1, dtype=torch.promote_types(out.dtype, torch.float32)), rows)})

        for parameter in (weight, bias):
            if parameter is not None and parameter.requires_grad:
                announce(parameter)
        node.register_prehook(guarded(arrives))


def _in_rows(values: Tensor, rows: RowRange | None) -> Stored:
    """The terms of a bias from those of some of its entries."""
    if rows is None:
        return Stored(values)
    return Stored(torch.nn.functional.pad(values, (rows.first, rows.total - rows.stop)))


def products(
    output: Tensor, inputs: Iterable[Any], weights: set[Tensor]
) -> Iterator[tuple[Node, Tensor, RowRange | None]]:
    """The nodes between inputs and output that multiply by one of the weights, or by some of its rows.

    Yields:
        The node, the weight, and the rows that it multiplies by, None for all of them.
    """
    seen = {x.grad_fn for x in inputs if isinstance(x, Tensor)}
    todo = [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for following, index in node.next_functions:
            found = _weight_behind(following, index) if node.name() in FACTOR else None
            if found is not None and found[0] in weights and found[0].dim() == 2:
                yield node, *found
            todo.append(following)


def _weight_behind(node: Any, index: int) -> tuple[Tensor, RowRange | None] | None:
    """The parameter that a node passes on, transposed or copied, and the rows that are left of it, None for all."""
    rows: RowRange | None = None
    third: int | None = None
    while node is not None:
        name = node.name()
        if name.endswith("AccumulateGrad"):
            total = len(node.variable)
            if third is not None:
                rows = RowRange(third * total // 3, (third + 1) * total // 3, total)
            return node.variable, rows
        if name == "SplitBackward0":  # query, key and value, each a third
            third = index
        elif name == "SplitWithSizesBackward0":  # query; key and value together
            sizes = node._saved_split_sizes
            rows = RowRange(sum(sizes[:index]), sum(sizes[: index + 1]), sum(sizes))
        elif name not in ("TBackward0", "ToCopyBackward0"):
            return None
        node, index = node.next_functions[0]
    return None

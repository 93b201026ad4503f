"""The terms of nn.MultiheadAttention, whose projections are no modules that are called: found in its autograd graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from .checkpoints import packs
from .plainly import plainly
from .terms import OuterProducts, Stored, Term, Unsupported

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
        announce: called once for each of those calls to come.
        arrived: takes the terms of some parameters.
        guarded: makes a function safe to be called within the user's backward pass.
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
            # A hook that held its own node would be a circle, which keeps what the node has saved of a broken pass.
            node: Any = torch._C._current_autograd_node()
            x = getattr(node, FACTOR[node.name()])
            # Attention works on positions x examples, flattened.
            x, out = (t.reshape(-1, examples, t.shape[-1]).transpose(0, 1) for t in (x, g[0]))
            with plainly(out.device.type):
                if weight.requires_grad:
                    arrived({weight: OuterProducts(x, out, rows)})
                if bias is not None and bias.requires_grad:
                    arrived({bias: _in_rows(out.sum(1, dtype=torch.promote_types(out.dtype, torch.float32)), rows)})

        for parameter in (weight, bias):
            if parameter is not None and parameter.requires_grad:
                announce(parameter)
        node.register_prehook(guarded(arrives))


def _in_rows(values: Tensor, rows: tuple[int, int, int] | None) -> Stored:
    if rows is None:
        return Stored(values)
    first, last, all_rows = rows
    return Stored(torch.nn.functional.pad(values, (first, all_rows - last)))


def products(
    output: Tensor, inputs: Iterable[Any], weights: set[Tensor]
) -> Iterator[tuple[Node, Tensor, tuple[int, int, int] | None]]:
    """The nodes between inputs and output that multiply by one of the weights, or by some of its rows.

    Yields:
        The node, the weight, and its rows: first, last + 1 and all; None for the whole weight.
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


def _weight_behind(node: Any, index: int) -> tuple[Tensor, tuple[int, int, int] | None] | None:
    """The parameter whose transpose, copy or rows a node hands on, and which rows."""
    rows: tuple[int, int, int] | None = None
    while node is not None:
        name = node.name()
        if name.endswith("AccumulateGrad"):
            if rows is not None and rows[1] < 0:  # equal chunks, as many rows each as the weight has columns
                rows = rows[0] * len(node.variable) // 3, (rows[0] + 1) * len(node.variable) // 3, len(node.variable)
            return node.variable, rows
        if name == "SplitBackward0":  # query, key and value, each a third
            rows = index, -1, -1
        elif name == "SplitWithSizesBackward0":  # query; key and value together
            sizes = node._saved_split_sizes
            rows = sum(sizes[:index]), sum(sizes[: index + 1]), sum(sizes)
        elif name not in ("TBackward0", "ToCopyBackward0"):
            return None
        node, index = node.next_functions[0]
    return None

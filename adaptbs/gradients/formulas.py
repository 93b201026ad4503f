"""Per-example terms of a layer's parameters, from its inputs and the gradient of its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .convolutions import CONVOLUTIONS, Convolved
from .mean_gradient import dense
from .tables import Rows, run_numbers
from .terms import OuterProducts, Stored, Term, Unsupported, squared

#: (layer, inputs of its call, gradient g of its output) -> the terms of each of its parameters.
Formula: TypeAlias = Callable[[Any, Sequence[Any], Tensor], Mapping[Tensor, Term]]


def formula_of(layer: nn.Module) -> Formula | None:
    """The formula of a layer; None if there is none.

    A subclass with the same forward, such as fastai's Embedding, has its parent's formula.
    """
    for kind, formula in FORMULAS.items():
        if isinstance(layer, kind) and type(layer).forward is kind.forward:
            return formula
    return None


def why_no_formula(layer: nn.Module) -> str | None:
    """The reason why a layer's parameters cannot be measured in the step; None if they can."""
    if formula_of(layer) is None:
        return "there is no formula for this layer"
    if any(name not in ("weight", "bias") for name, _ in layer.named_parameters(recurse=False)):
        return "it has parameters besides its weight and bias"  # such as those of weight_norm
    if any(p.is_complex() for p in layer.parameters(recurse=False)):
        return "its weights are complex"
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and (layer.max_norm is not None or layer.scale_grad_by_freq):
        return "max_norm and scale_grad_by_freq are not supported"
    if isinstance(layer, nn.EmbeddingBag) and layer.mode == "max":
        return "mode='max' is not supported"
    if ties_examples(layer):
        return "in training mode it ties the examples of a batch together"
    return None


def ties_examples(layer: nn.Module) -> bool:
    """True if a layer computes with statistics of the batch."""
    batch_norm = isinstance(layer, nn.modules.batchnorm._BatchNorm)
    return batch_norm and (layer.training or layer.running_mean is None)


def _linear(layer: nn.Linear, inputs: Sequence[Any], g: Tensor) -> Mapping[Tensor, Term]:
    (x,) = inputs
    x, g = x.reshape(x.shape[0], -1, x.shape[-1]), g.reshape(g.shape[0], -1, g.shape[-1])
    return {layer.weight: OuterProducts(x, g), **_bias(layer, g, 1)}


def _bias(layer: Any, g: Tensor, positions: int) -> dict[Tensor, Term]:
    """The bias's terms, if there is one, from g (n, ...), with positions along the dimension `positions`."""
    if layer.bias is None:
        return {}
    if g.shape[positions] == 1:
        return {layer.bias: Stored(g.squeeze(positions))}
    return {layer.bias: Stored(g.sum(positions, dtype=torch.promote_types(g.dtype, torch.float32)))}


def _embedding(layer: nn.Embedding, inputs: Sequence[Any], g: Tensor) -> Mapping[Tensor, Term]:
    tokens = inputs[0].reshape(inputs[0].shape[0], -1)
    g = g.reshape(*tokens.shape, -1)
    if layer.padding_idx is not None:
        g = g * (tokens != layer.padding_idx)[..., None]
    return {layer.weight: Rows(tokens, g, len(layer.weight))}


def _embedding_bag(layer: nn.EmbeddingBag, inputs: Sequence[Any], g: Tensor) -> Mapping[Tensor, Term]:
    tokens, offsets, weights = (*inputs, None, None)[:3]
    if offsets is not None or tokens.dim() != 2:
        raise Unsupported("EmbeddingBag: only bags given as a matrix are supported, not offsets")
    counted = torch.ones_like(tokens, dtype=torch.float32) if weights is None else weights.float()
    if layer.padding_idx is not None:
        counted = counted * (tokens != layer.padding_idx)
    if layer.mode == "mean":
        counted = counted / counted.sum(1, keepdim=True).clamp(min=1)
    return {layer.weight: Bags(tokens, counted, g, len(layer.weight))}


class Bags:
    """Rows of a table, looked up by tokens (n, T) and summed with weights (n, T); g (n, features) is their gradient.

    The gradient of each row is its weight times g, so one number for each row is enough.
    """

    def __init__(self, tokens: Tensor, weights: Tensor, g: Tensor, entries: int) -> None:
        self._tokens, self._weights, self._g, self._entries = tokens, weights, g, entries

    @property
    def examples(self) -> int:
        return len(self._tokens)

    def squared(self) -> Tensor:
        runs, order = run_numbers(self._tokens)
        weights = self._weights.gather(1, order).flatten()
        sums = torch.zeros_like(weights).index_add_(0, runs, weights).view_as(self._tokens)
        sizes = torch.linalg.vector_norm(dense(self._g), dim=1) * torch.linalg.vector_norm(sums, dim=1)
        return squared(sizes)

    def total(self) -> Tensor:
        return self._as_rows().total()

    def joined(self, other: Term) -> Term:
        return self._as_rows().joined(other._as_rows() if isinstance(other, Bags) else other)

    def _as_rows(self) -> Rows:
        return Rows(self._tokens, dense(self._g)[:, None] * self._weights[..., None], self._entries)


def _layer_norm(layer: nn.LayerNorm, inputs: Sequence[Any], g: Tensor) -> Mapping[Tensor, Term]:
    return _scale_and_shift(layer, F.layer_norm(dense(inputs[0]), layer.normalized_shape, eps=layer.eps), g)


def _rms_norm(layer: nn.RMSNorm, inputs: Sequence[Any], g: Tensor) -> Mapping[Tensor, Term]:
    return _scale_and_shift(layer, F.rms_norm(dense(inputs[0]), layer.normalized_shape, eps=layer.eps), g)


def _scale_and_shift(layer: Any, normalized: Tensor, g: Tensor) -> Mapping[Tensor, Term]:
    """Terms of a weight and a bias that have the shape of an example's last dimensions."""
    shape, g = layer.weight.shape, dense(g)
    terms: dict[Tensor, Term] = {}
    for parameter, each in ((layer.weight, g * normalized), (getattr(layer, "bias", None), g)):
        if parameter is not None:
            terms[parameter] = Stored(each.reshape(len(g), -1, *shape).sum(1))
    return terms


def _group_norm(layer: nn.GroupNorm, inputs: Sequence[Any], g: Tensor) -> Mapping[Tensor, Term]:
    return _by_channel(layer, F.group_norm(dense(inputs[0]), layer.num_groups, eps=layer.eps), g)


def _instance_norm(layer: Any, inputs: Sequence[Any], g: Tensor) -> Mapping[Tensor, Term]:
    if layer.track_running_stats and not layer.training:
        return _batch_norm(layer, inputs, g)
    return _by_channel(layer, F.instance_norm(dense(inputs[0]), eps=layer.eps), g)


def _batch_norm(layer: Any, inputs: Sequence[Any], g: Tensor) -> Mapping[Tensor, Term]:
    """In evaluation mode, where the running statistics are constants."""
    mean, variance = dense(layer.running_mean), dense(layer.running_var)
    return _by_channel(layer, F.batch_norm(dense(inputs[0]), mean, variance, eps=layer.eps), g)


def _by_channel(layer: Any, normalized: Tensor, g: Tensor) -> Mapping[Tensor, Term]:
    """Terms of a weight and a bias with one number for each channel, the second dimension."""
    g = dense(g)
    return {
        parameter: Stored(each.flatten(2).sum(2) if each.dim() > 2 else each)
        for parameter, each in ((layer.weight, g * normalized), (layer.bias, g))
        if parameter is not None
    }


def _prelu(layer: nn.PReLU, inputs: Sequence[Any], g: Tensor) -> Mapping[Tensor, Term]:
    each = dense(g) * dense(inputs[0]).clamp(max=0)
    if layer.num_parameters == 1:
        return {layer.weight: Stored(each.flatten(1).sum(1, keepdim=True))}
    return {layer.weight: Stored(each.flatten(2).sum(2) if each.dim() > 2 else each)}


def _convolution(layer: Any, inputs: Sequence[Any], g: Tensor) -> Mapping[Tensor, Term]:
    if g.dim() != layer.weight.dim():
        raise Unsupported(f"a {type(layer).__name__} does not have the examples of a batch along its first dimension")
    return {layer.weight: Convolved(layer, [(inputs[0], g)]), **_bias(layer, g.flatten(2), 2)}


FORMULAS: dict[type[nn.Module], Formula] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _embedding_bag,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.modules.instancenorm._InstanceNorm: _instance_norm,
    nn.modules.batchnorm._BatchNorm: _batch_norm,
    nn.PReLU: _prelu,
    **dict.fromkeys(CONVOLUTIONS, _convolution),
}

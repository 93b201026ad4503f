"""Squared norms from the gradients of single examples, computed layer by layer in one pass of its own.

A layer's weight gradient is a sum over examples of products of the layer's input and the gradient of its output. Hooks
keep both. The squared norm of each example's term follows from them, so the whole model's gradient of one example is
never stored (Goodfellow 2015, arXiv:1510.01799; for sequences Li et al. 2022, arXiv:2110.05679).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from ..model import BatchLoss, batch_length, has_batch_norm, preserved, slice_batch, trainable
from ..types import SquaredNorms
from .mean_gradient import MeanGradient, dense, squared_norm

#: (layer, input x, gradient g of its output) -> squared norm of each example's term of the gradient, shape (n,).
Rule: TypeAlias = Callable[[Any, Tensor, Tensor], Tensor]

OUTSIDE = "a weight is used outside its own layer's forward"
AT_ONCE = 2**24  # numbers in a layer's largest intermediate result; beyond it the examples are processed in chunks


class Unsupported(Exception):
    """The model cannot be measured per example. The message says why."""


class PerExample:
    """Squared norms from the gradients g_1 ... g_n of the n examples of a batch, in one pass of its own.

    small = mean |g_i|^2 at 1 sample, large = |mean g_i|^2 at n samples. So |G|^2 is the mean of g_i . g_j over all
    i != j, and tr(Sigma) is the sample variance of the g_i. Both are unbiased for independent examples. This is
    `GradientPool` with b = 1, and has less variance than two halves. `.grad`, buffers and random states are restored.

    Every trainable parameter must belong to one layer of the kinds in `LAYERS`, used once in a pass, with examples
    along the first dimension. No BatchNorm may be in training mode, since it makes one example's loss depend on the
    others.

    The norms are exact if the loss is a plain mean or sum over rows. Under a weighted mean sum_i w_i l_i / sum_i w_i
    (class weights, ignored targets, sequences of different lengths in a mean over tokens) a row's gradient counts as
    w_i g_i/mean(w), but w_i (g_i - G)/mean(w) + G would be right. Let cv be the weights' standard deviation over their
    mean. Then B_simple is too large by cv^2 samples if the weights are independent of the gradients. In expectation it
    is never off by more than cv^2 + 2 cv sqrt(B_simple).

    Args:
        model: the model.
        batch_loss: its loss on a batch.

    Source: Goodfellow 2015, arXiv:1510.01799; Li et al. 2022, arXiv:2110.05679.
    """

    def __init__(self, model: nn.Module, batch_loss: BatchLoss) -> None:
        self._model, self._batch_loss = model, batch_loss
        self.mean_gradient = MeanGradient(batch_loss)
        self._checked: set[int] = set()  # ids of the parameters trainable at an earlier check

    def measure(self, batch: Any) -> SquaredNorms | None:
        """Squared norms, on the device; None for a batch of one.

        Raises:
            Unsupported: if the model does not, or no longer does, meet the conditions above. No parameter is ever left
                out silently.
        """
        n = batch_length(batch)
        if n < 2:
            return None
        with preserved(self._model):
            training = {id(p) for p in trainable(self._model)}
            if not training <= self._checked and self._check(slice_batch(batch, 0, 1)):
                self._checked |= training
            squares, gradient = self._squares(batch, n)
        return SquaredNorms(1, squares.mean(), n, squared_norm(gradient))

    def _squares(self, batch: Any, n: int) -> tuple[Tensor, list[Tensor | None]]:
        """|g_i|^2 of each example's own loss, shape (n,), and the gradient of the mean loss."""
        # Found anew each time, because layers may be frozen and modes may change while a model trains.
        caught: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in supported_layers(self._model)}

        def catch(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
            if len(inputs) != 1 or named:  # such as per_sample_weights of an EmbeddingBag
                raise Unsupported(f"a {type(layer).__name__} is called with more than its one input, or by keyword")
            if output.requires_grad:
                # A hook on the tensor as it is now sees this gradient, even if the tensor is changed in place later.
                keep = lambda g: caught[layer].append((inputs[0].detach(), g.detach()))  # noqa: E731
                handles.append(output.register_hook(keep))  # type: ignore[no-untyped-call]

        handles: list[RemovableHandle] = [layer.register_forward_hook(catch, with_kwargs=True) for layer in caught]
        try:
            gradient = self.mean_gradient(self._model, batch)
        finally:
            for handle in handles:
                handle.remove()
        reached = {id(p) for p, g in zip(trainable(self._model), gradient, strict=True) if g is not None}
        total: Tensor | float = 0.0
        for layer, uses in caught.items():
            if not uses and any(id(p) in reached for p in layer.parameters(recurse=False)):
                raise Unsupported(OUTSIDE)
            if len(uses) > 1:
                raise Unsupported(f"a {type(layer).__name__} is used {len(uses)} times in one pass")
            rule = _rule(layer)
            assert rule is not None
            for x, g in uses:
                if x.shape[:1] != (n,) or g.shape[:1] != (n,):
                    raise Unsupported(f"a {type(layer).__name__} does not have the examples along its first dimension")
                total = total + _in_chunks(rule, layer, x, g)
        if not isinstance(total, Tensor):
            raise Unsupported("the loss depends on none of the model's layers")
        own = 1 if self.mean_gradient.sums else n  # in a mean loss each example's gradient has a factor 1/n
        scale = 1.0 if self.mean_gradient.scale is None else self.mean_gradient.scale
        return total * (own / scale) ** 2, gradient

    def _check(self, one: Any) -> bool:
        """Compare the norm of a single example with that of its gradient by autograd.

        Returns:
            True if the check was conclusive. It is not if the example's gradient is 0 or not finite.

        Raises:
            Unsupported: if the two differ, so that some weight is used outside its own layer's forward.
        """
        squares, gradient = self._squares(one, 1)
        found, expected = squares[0].item(), squared_norm(gradient).item()
        if not math.isclose(found, expected, rel_tol=1e-2) and math.isfinite(found) and math.isfinite(expected):
            raise Unsupported(OUTSIDE)
        return math.isfinite(expected) and expected > 0


def supported_layers(model: nn.Module) -> list[nn.Module]:
    """Layers that own the model's trainable parameters. Raises Unsupported if one of them cannot be measured."""
    if has_batch_norm(model):
        raise Unsupported("BatchNorm in training mode ties the examples of a batch together")
    owners = [m for m in model.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    for owner in owners:
        why = _why_not(owner)
        if why:
            raise Unsupported(f"{type(owner).__name__}: {why}")
    uses = Counter(id(p) for m in owners for p in m.parameters(recurse=False))
    if max(uses.values(), default=0) > 1:
        raise Unsupported("two layers share a weight")
    return owners


def _why_not(layer: nn.Module) -> str | None:
    if _rule(layer) is None:
        return "no formula for this layer"
    if any(name not in ("weight", "bias") for name, _ in layer.named_parameters(recurse=False)):
        return "it has parameters besides its weight and bias"  # such as those of weight_norm
    if any(p.is_complex() for p in layer.parameters(recurse=False)):
        return "its weights are complex"
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and (layer.max_norm is not None or layer.scale_grad_by_freq):
        return "max_norm and scale_grad_by_freq are not supported"
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return "only zero padding given as numbers is supported"
    return None


def _rule(layer: nn.Module) -> Rule | None:
    """The formula for a layer, None if there is none.

    A subclass with the same forward, such as fastai's Embedding, has its parent's formula.
    """
    for kind, rule in LAYERS.items():
        if isinstance(layer, kind) and type(layer).forward is kind.forward:
            return rule
    return None


def _in_chunks(rule: Rule, layer: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """Apply `rule` to so many examples at a time that its intermediate results stay within `AT_ONCE`."""
    x, g = dense(x), dense(g)
    chunk = max(1, AT_ONCE // max(1, _largest(layer, x[0].numel(), g[0])))
    chunks = zip(torch.split(x, chunk), torch.split(g, chunk), strict=True)
    return torch.cat([rule(layer, xs, gs) for xs, gs in chunks])


def _largest(layer: nn.Module, inputs: int, g: Tensor) -> int:
    """Count of numbers in the largest intermediate result for one example.

    Args:
        layer: the layer.
        inputs: count of numbers in the layer's input.
        g: gradient of the layer's output for one example.
    """
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return max(inputs**2, g.numel())  # the rules compare all pairs of tokens
    patches = inputs
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        patches *= math.prod(layer.kernel_size)
    positions = max(1, g.numel() // max(1, g.shape[-1] if isinstance(layer, nn.Linear) else g.shape[0]))
    weight = max(p.numel() for p in layer.parameters(recurse=False))
    return max(min(positions**2, weight), patches, g.numel())


def _linear(layer: nn.Linear, x: Tensor, g: Tensor) -> Tensor:
    x, g = x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1])
    return _outer(layer.weight, x, g) + _sum(layer.bias, g)


def _outer(weight: Tensor, x: Tensor, g: Tensor) -> Tensor:
    """|sum_t g_t x_t'|^2 per example, from x (n, T, in) and g (n, T, out). Uses Gram matrices where T is short."""
    if not weight.requires_grad:
        return x.new_zeros(len(x), dtype=g.dtype)
    if x.shape[1] == 1:
        return g.square().sum((1, 2)) * x.square().sum((1, 2))
    if x.shape[1] ** 2 <= x.shape[2] * g.shape[2]:
        return ((x @ x.mT) * (g @ g.mT)).sum((1, 2))
    return (g.mT @ x).square().sum((1, 2))


def _sum(bias: Tensor | None, g: Tensor) -> Tensor:
    """|sum_t g_t|^2 per example, from g (n, T, features)."""
    if bias is None or not bias.requires_grad:
        return g.new_zeros(len(g))
    return g.sum(1).square().sum(1)


def _embedding(layer: nn.Embedding, x: Tensor, g: Tensor) -> Tensor:
    x, g = x.reshape(len(x), -1), g.reshape(len(g), -1, g.shape[-1])
    if layer.padding_idx is not None:
        g = g * (x != layer.padding_idx)[..., None]
    if x.shape[1] == 1:
        return g.square().sum((1, 2))
    same = x[:, :, None] == x[:, None, :]  # gradients of positions with the same token add up in one row of the weight
    return ((g @ g.mT) * same).sum((1, 2))


def _embedding_bag(layer: nn.EmbeddingBag, x: Tensor, g: Tensor) -> Tensor:
    if x.dim() != 2 or layer.mode == "max":
        raise Unsupported("EmbeddingBag: only bags given as a matrix, with mode 'sum' or 'mean', are supported")
    counted = torch.ones_like(x) if layer.padding_idx is None else (x != layer.padding_idx).to(x.dtype)
    same = (x[:, :, None] == x[:, None, :]) * counted[:, :, None] * counted[:, None, :]
    shares = counted.sum(1).clamp(min=1) if layer.mode == "mean" else torch.ones_like(x[:, 0])
    return g.square().sum(1) * same.sum((1, 2)) / shares.square()


def _layer_norm(layer: nn.LayerNorm, x: Tensor, g: Tensor) -> Tensor:
    return _scale_and_shift(layer, F.layer_norm(x, layer.normalized_shape, eps=layer.eps), g)


def _rms_norm(layer: nn.RMSNorm, x: Tensor, g: Tensor) -> Tensor:
    return _scale_and_shift(layer, F.rms_norm(x, layer.normalized_shape, eps=layer.eps), g)


def _scale_and_shift(layer: Any, normalized: Tensor, g: Tensor) -> Tensor:
    features = layer.weight.numel()
    normalized, g = normalized.reshape(len(g), -1, features), g.reshape(len(g), -1, features)
    return _sum(layer.weight, g * normalized) + _sum(getattr(layer, "bias", None), g)


def _group_norm(layer: nn.GroupNorm, x: Tensor, g: Tensor) -> Tensor:
    normalized = F.group_norm(x, layer.num_groups, eps=layer.eps)
    normalized, g = normalized.flatten(2).mT, g.flatten(2).mT  # shape (n, positions, channels)
    return _sum(layer.weight, g * normalized) + _sum(layer.bias, g)


def _conv1d(layer: Any, x: Tensor, g: Tensor) -> Tensor:
    lead = {"dilation": (1, *layer.dilation), "padding": (0, *layer.padding), "stride": (1, *layer.stride)}
    patches = F.unfold(x[:, :, None], (1, *layer.kernel_size), **lead)  # as an image of one row
    return _convolution(layer, patches, g)


def _conv2d(layer: Any, x: Tensor, g: Tensor) -> Tensor:
    patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return _convolution(layer, patches, g.flatten(2))


def _convolution(layer: Any, patches: Tensor, g: Tensor) -> Tensor:
    """Treat the convolution as a linear layer on patches (n, in * kernel, positions), with g (n, out, positions)."""
    groups = zip(patches.chunk(layer.groups, 1), g.chunk(layer.groups, 1), strict=True)
    return sum((_outer(layer.weight, p.mT, out.mT) for p, out in groups), _sum(layer.bias, g.mT))


LAYERS: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _embedding_bag,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.Conv1d: _conv1d,
    nn.Conv2d: _conv2d,
}

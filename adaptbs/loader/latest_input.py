"""The shapes that the model was called on last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class LatestInput:
    """A forward hook that remembers shapes, in training. It holds nothing else, so a model can be copied with it.

    Attributes:
        shapes: of the tensors that the model was called on last, those with a dimension.
    """

    shapes: tuple[tuple[int, ...], ...] = ()

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.training and torch.is_grad_enabled():
            values = (*args, *kwargs.values())
            # At every step, so nothing is called for it. A nested tensor has no shape.
            shapes = [v.shape for v in values if isinstance(v, Tensor) and not v.is_nested]
            self.shapes = tuple([tuple(shape) for shape in shapes if shape])

"""The shapes that the model was called on last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..model import shape_of


class LatestInput:
    """A forward hook that remembers shapes, in training. It holds nothing else, so a model can be copied with it.

    Attributes:
        shapes: of the tensors that the model was called on last, those with a dimension.
    """

    shapes: tuple[tuple[int, ...], ...] = ()

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.training and torch.is_grad_enabled():
            values = (*args, *kwargs.values())
            found = (shape_of(v) for v in values if isinstance(v, Tensor))
            self.shapes = tuple(shape for shape in found if shape)

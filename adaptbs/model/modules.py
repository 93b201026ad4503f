"""Questions to a model: what trains, what ties samples together, what adds chance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that a gradient here has an entry for, in order."""
    return [p for p in model.parameters() if p.requires_grad]


def has_batch_norm(model: nn.Module) -> bool:
    """Whether any BatchNorm of the model is in training mode."""
    # (its common base class, so that lazy and synchronised kinds count)
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules())


def cuda_devices(model: nn.Module) -> list[int]:
    """Indices of the CUDA devices that the model's parameters lie on."""
    return sorted({p.get_device() for p in model.parameters() if p.device.type == "cuda"})


# Layers that in training tie samples together or add chance, while they leave the loss's own form alone.
NOISY = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm, nn.RNNBase)


@contextmanager
def without_chance(model: nn.Module) -> Iterator[None]:
    """Dropout and BatchNorm as in evaluation; not the whole model: some compute something else there."""
    noisy = [m for m in model.modules() if m.training and isinstance(m, NOISY)]
    try:
        for module in noisy:
            module.training = False
        yield
    finally:
        for module in noisy:
            module.training = True

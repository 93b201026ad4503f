"""Contexts after which a model, its buffers and the random states are what they were before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Restore buffers (BatchNorm's) and random states (torch's, NumPy's, Python's), also after an exception."""
    buffers = [(m, name, b, b.clone()) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=cuda_devices(model)):
        try:
            yield
        finally:
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    module._buffers[name] = buffer.copy_(value)
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def weights_left_as_found(model: nn.Module) -> Iterator[None]:
    """As `left_as_found`; restores parameters, `.grad` and train/eval modes too."""
    parameters = [(p, p.detach().clone()) for p in model.parameters()]
    gradients: list[Any] = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    with left_as_found(model):
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in parameters:
                    parameter.copy_(value)
                for parameter, gradient, saved in gradients:
                    parameter.grad = gradient if saved is None else gradient.copy_(saved)
            for module, training in modes:
                module.training = training


def cuda_devices(model: nn.Module) -> list[int]:
    """Indices of the CUDA devices that the model's parameters lie on."""
    return sorted({p.get_device() for p in model.parameters() if p.device.type == "cuda"})

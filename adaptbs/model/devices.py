"""Devices by their index, and the state of the random numbers that are drawn on one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import device as Device


def with_index(device: Device) -> Device:
    """The same device, named with its index. `torch.device("cuda")` is the current CUDA device of this moment."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def draws(device: Device) -> bool:
    """True if random numbers are drawn on the device itself (CUDA, XPU, MPS), and not by the CPU's generator."""
    return device.type != "cpu" and hasattr(getattr(torch, device.type, None), "get_rng_state")


def random_state(device: Device) -> Tensor:
    """The state of the default generator of a device that `draws`."""
    state: Tensor = torch.get_device_module(device).get_rng_state(device)
    return state


def set_random_state(device: Device, state: Tensor) -> None:
    """Restore what `random_state` returned."""
    torch.get_device_module(device).set_rng_state(state, device)

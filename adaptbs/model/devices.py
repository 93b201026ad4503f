"""Names a CUDA device by its index, which some of PyTorch's functions demand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import device as Device


def with_index(device: Device) -> Device:
    """The same device, named with its index. `torch.device("cuda")` is the current CUDA device of this moment."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device

"""A factor on the loss that keeps float16 gradients from vanishing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import device as Device

# GradScaler starts at 2^16 and expects its first steps to overflow; a measurement is dearer than the last bits of a
# gradient. From here float16 holds numbers of 6e-11 to 64.
START = 2.0**10
LARGEST = 2.0**24
BACK_OFF = 1 / 16  # after an overflow; measurements are few, and each overflow loses one
GROW_AFTER = 64  # passes without one


class LossScale:
    """What float16 losses are multiplied by, since float16 knows nothing between 0 and 6e-8.

    As torch.amp.GradScaler's, but of measurements alone, which must not move the one that training uses. A power of 2,
    so that dividing by it again is exact. It lives on the device: nothing here waits for a result.
    """

    def __init__(self) -> None:
        self._scale = torch.tensor(START)
        self._good = torch.tensor(0)  # passes since the last change

    def on(self, device: Device) -> Tensor:
        """The scale of now: float32, of no dimension."""
        if self._scale.device != device:
            self._scale, self._good = self._scale.to(device), self._good.to(device)
        return self._scale

    def update(self, overflow: Tensor) -> None:
        """Back off after an overflow, a boolean on the same device; grow again after many passes without."""
        good = torch.where(overflow, 0, self._good + 1)
        grow = good >= GROW_AFTER
        factor = torch.where(overflow, BACK_OFF, torch.where(grow, 2.0, 1.0))
        self._scale = (self._scale * factor).clamp(1.0, LARGEST)
        self._good = torch.where(grow, 0, good)

    def state_dict(self) -> list[float]:
        return [self._scale.item(), self._good.item()]

    def load_state_dict(self, state: list[float]) -> None:
        scale, good = state
        self._scale, self._good = torch.tensor(scale), torch.tensor(int(good))

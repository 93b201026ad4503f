"""A factor on the loss that keeps float16 gradients from vanishing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import device as Device

# GradScaler starts at 2^16 and expects its first steps to overflow. Here an overflow loses a measurement, which costs
# more than the last bits of a gradient. At this scale float16 holds gradients from 6e-11 to 64.
START = 2.0**10
LARGEST = 2.0**24
BACK_OFF = 1 / 16  # factor after an overflow; it is small since measurements are few and each overflow loses one
GROW_AFTER = 64  # passes without an overflow before the scale doubles


class LossScale:
    """Factor on float16 losses, because float16 holds no numbers between 0 and 6e-8.

    It adapts like torch.amp.GradScaler's scale but serves measurements alone, which must not change the scale of
    training. It is a power of 2, so that dividing by it is exact. It stays on the device and is never waited for.
    """

    def __init__(self) -> None:
        self._scale = torch.tensor(START)
        self._good = torch.tensor(0)  # passes without an overflow since the last change

    def on(self, device: Device) -> Tensor:
        """The current scale on `device`, a float32 tensor without dimensions."""
        if self._scale.device != device:
            self._scale, self._good = self._scale.to(device), self._good.to(device)
        return self._scale

    def update(self, overflow: Tensor) -> None:
        """Reduce the scale after an overflow; double it after `GROW_AFTER` passes without one.

        Args:
            overflow: a boolean tensor on the scale's device.
        """
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

"""The momentum of running statistics, such as BatchNorm's, at k times the base batch.

At each forward pass in training mode BatchNorm makes r <- (1 - m) r + m b, with b the statistics of the batch. A pass
over k times as many samples stands for k passes, which together leave (1 - m)^k of r. So m becomes 1 - (1 - m)^k, and
r averages over as many samples as before.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..model import is_compiled

_NAME = "_adaptbs_momentum"  # on a module while its momentum is changed: (the user's, ours)

# The common base classes of BatchNorm, InstanceNorm, and their lazy and synchronised kinds.
_NORM = nn.modules.batchnorm._NormBase
# A norm of somebody else's may mean by momentum what is kept of r, as Keras does, where .99 is usual. torch's is small.
LARGEST_OF_OTHERS = 0.5


class RunningStatistics:
    """Sets the momentum of a model's running statistics to the batch, and gives it back.

    Only `momentum` is changed, on the modules themselves: buffers, modes and the model's `state_dict` are not touched.
    What the user had is remembered on the module, so that neither a second run nor a copy of the model takes a changed
    momentum for the user's. A momentum that the user sets meanwhile is the user's from then on.

    Args:
        model: looked through when the batch changes, since its modules may be replaced during a run.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._changed: list[nn.Module] | None = None  # None: an earlier run may have left some changed

    def follow(self, k: float) -> None:
        """Set the momentum for passes over k times as many samples as at the base batch; at 1 it is the user's own."""
        self.restore()
        modules = list(self._model.modules()) if k != 1 else []
        if any(map(is_compiled, modules)):
            # Compiled code holds the momentum as a constant, and torch gives up after a few recompilations.
            k = 2.0 ** round(math.log2(k))
        if k == 1:
            return
        self._changed = [module for module in modules if _has_momentum(module)]
        for module in self._changed:
            found: Any = module.momentum
            ours = 1 - (1 - found) ** k
            module.__dict__[_NAME] = found, ours
            module.momentum = ours

    def restore(self) -> None:
        """Give every module the momentum that the user set."""
        for module in self._model.modules() if self._changed is None else self._changed:
            found, ours = module.__dict__.pop(_NAME, (None, None))
            if found is not None and module.momentum == ours:
                module.momentum = found
        self._changed = []


def _has_momentum(module: nn.Module) -> bool:
    """True if a module moves running statistics by a momentum as torch's norms do. None is a cumulative average."""
    momentum = getattr(module, "momentum", None)
    if not isinstance(momentum, float) or not 0 < momentum < 1 or isinstance(module, torch.jit.ScriptModule):
        return False
    if isinstance(module, _NORM):
        return module.track_running_stats
    statistics = {"running_mean", "running_var"} & module._buffers.keys()
    return bool(statistics) and momentum <= LARGEST_OF_OTHERS

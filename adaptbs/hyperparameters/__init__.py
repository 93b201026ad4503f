"""What follows the batch: the learning rate and its kin, and the schedules that they go by."""

from .learning_rate import LR_SCALINGS, LRFactor, is_adaptive, lr_rule
from .scaler import Hyperparameters
from .schedules import one_cycle
from .step_hook import ScaledStep
from .transfer import ADAM, LAMB, LR_ONLY, RADAM, RMSPROP, Kind, following, kind_of

__all__ = [
    "ADAM",
    "LAMB",
    "LR_ONLY",
    "LR_SCALINGS",
    "RADAM",
    "RMSPROP",
    "Hyperparameters",
    "Kind",
    "LRFactor",
    "ScaledStep",
    "following",
    "is_adaptive",
    "kind_of",
    "lr_rule",
    "one_cycle",
]

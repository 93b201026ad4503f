"""The learning rate and its kin at k times the base batch, BatchNorm's momentum, and the one-cycle schedule."""

from .learning_rate import LONGEST, LR_SCALINGS, lr_rule
from .lookup import traits_by_group, traits_of
from .running_statistics import RunningStatistics
from .scaler import HyperparameterScaler
from .schedules import one_cycle
from .step_hook import StepHook, is_followed
from .traits import ADAM, LAMB, LR_ONLY, RADAM, RMSPROP, UNKNOWN, OptimizerTraits
from .transfer import following

__all__ = [
    "ADAM",
    "LAMB",
    "LONGEST",
    "LR_ONLY",
    "LR_SCALINGS",
    "RADAM",
    "RMSPROP",
    "UNKNOWN",
    "HyperparameterScaler",
    "OptimizerTraits",
    "RunningStatistics",
    "StepHook",
    "following",
    "is_followed",
    "lr_rule",
    "one_cycle",
    "traits_by_group",
    "traits_of",
]

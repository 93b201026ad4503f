"""The learning rate and its kin at k times the base batch, BatchNorm's momentum, and the one-cycle schedule."""

from .learning_rate import LR_SCALINGS, lr_rule
from .running_statistics import RunningStatistics
from .scaler import HyperparameterScaler
from .schedules import one_cycle
from .step_hook import StepHook
from .transfer import ADAM, LAMB, LR_ONLY, RADAM, RMSPROP, OptimizerTraits, following, traits_of

__all__ = [
    "ADAM",
    "LAMB",
    "LR_ONLY",
    "LR_SCALINGS",
    "RADAM",
    "RMSPROP",
    "HyperparameterScaler",
    "OptimizerTraits",
    "RunningStatistics",
    "StepHook",
    "following",
    "lr_rule",
    "one_cycle",
    "traits_of",
]

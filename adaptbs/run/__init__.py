"""One training run, as every face shares it."""

from .controller import Controller
from .holds import RATE, ROWS, Holds
from .in_pieces import InPieces
from .look_ahead import DetectLookAhead, LookAhead, NoLookAhead, OneAheadOrLook, StillAhead, on_backward
from .passed_over import PassedOver
from .report import RunReport
from .settings import Settings, SharedArguments, shows_shared_arguments
from .training_run import TrainingRun
from .trial_step import TrialStep
from .version import check_version

__all__ = [
    "RATE",
    "ROWS",
    "Controller",
    "DetectLookAhead",
    "Holds",
    "InPieces",
    "LookAhead",
    "NoLookAhead",
    "OneAheadOrLook",
    "PassedOver",
    "RunReport",
    "Settings",
    "SharedArguments",
    "StillAhead",
    "TrainingRun",
    "TrialStep",
    "check_version",
    "on_backward",
    "shows_shared_arguments",
]

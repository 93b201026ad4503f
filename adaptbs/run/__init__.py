"""One training run, as every face shares it."""

from .controller import Controller
from .look_ahead import WatchedLoop
from .measuring import measure
from .report import RunReport
from .settings import Settings

__all__ = ["Controller", "RunReport", "Settings", "WatchedLoop", "measure"]

"""One training run, as every face shares it."""

from .controller import Controller
from .look_ahead import DetectLookAhead
from .measuring import measure
from .report import RunReport
from .settings import Settings

__all__ = ["Controller", "DetectLookAhead", "RunReport", "Settings", "measure"]

"""Stands in for the one function of SciPy that adaptbs needs, on a machine that has torch and nothing else."""

from __future__ import annotations

import math
import sys
from types import ModuleType

STEPS = 2000  # of Simpson's rule


def for_scipy() -> None:
    """Provide `scipy.special.stdtrit` if SciPy is not installed."""
    if installed():
        return
    package, special = ModuleType("scipy"), ModuleType("scipy.special")
    package.special = special  # type: ignore[attr-defined]
    special.stdtrit = quantile  # type: ignore[attr-defined]
    sys.modules.update({"scipy": package, "scipy.special": special})


def installed() -> bool:
    try:
        import scipy.special  # noqa: F401
    except ImportError:
        return False
    return True


def quantile(degrees: float, share: float) -> float:
    """The t below which Student's distribution of so many degrees of freedom has this share.

    With t = sqrt(degrees) tan(angle), the share between 0 and t is c times the integral of cos^(degrees - 1) up to the
    angle, where c makes the whole half of it 1/2.
    """
    if share < 0.5:
        return -quantile(degrees, 1 - share)

    def integral(angle: float) -> float:
        h = angle / STEPS
        inner = sum((4 if i % 2 else 2) * math.cos(i * h) ** (degrees - 1) for i in range(1, STEPS))
        return h / 3 * (1 + inner + max(math.cos(angle), 0.0) ** (degrees - 1))

    log_beta = math.lgamma(degrees / 2) + math.lgamma(0.5) - math.lgamma((degrees + 1) / 2)
    wanted, low, high = (share - 0.5) * math.exp(log_beta), 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if integral(middle) < wanted else (low, middle)
    return math.sqrt(degrees) * math.tan(low)

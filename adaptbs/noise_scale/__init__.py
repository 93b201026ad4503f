"""Squared gradient norms -> the noise scale B_simple = tr(Sigma)/|G|^2, with its interval."""

from .b_simple import estimate, is_finite, student_t, to_floats
from .tracker import NoiseScaleTracker

__all__ = ["NoiseScaleTracker", "estimate", "is_finite", "student_t", "to_floats"]

"""Needs torch, numpy and pytest alone: adaptbs takes one function of SciPy's, which has a stand-in."""

from benchmarks.gpu import stand_in

stand_in.for_scipy()

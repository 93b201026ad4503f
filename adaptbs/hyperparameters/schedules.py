"""The one-cycle schedule in closed form."""

from __future__ import annotations

import math


def one_cycle(p: float, lr_max: float, *, pct_start: float = 0.25, div: float = 25.0, div_final: float = 1e5) -> float:
    """The learning rate of the one-cycle policy after the share `p` of a run.

    It follows half a cosine from `lr_max / div` up to `lr_max`, and another down to `lr_max / div_final` (Smith 2018,
    arXiv:1803.09820; the cosines and these defaults are those of fastai's `fit_one_cycle`). Use it in a loop that sets
    the learning rate itself. Set the value for the base batch. The optimizer's step scales it to the current batch.

    Momentum follows the same function in the other direction: from .95 down to .85 and back is
    `one_cycle(p, 0.85, div=0.85 / 0.95, div_final=0.85 / 0.95)`.

    After i steps torch's `OneCycleLR(optimizer, lr_max, total_steps=n, pct_start=s, div_factor=div,
    final_div_factor=f)` has the learning rate
    `one_cycle(i / (n - 1), lr_max, pct_start=(s * n - 1) / (n - 1), div=div, div_final=div * f)`. It ends at step
    n - 1, and its f divides the start, not the peak.

    Args:
        p: share of the run done, 0..1. A value outside is taken for the nearer end, because the shares of a run may
            add up to a little more than 1.
        lr_max: learning rate at the peak.
        pct_start: share of the run at which the peak comes, 0..1. At 0 the run starts at the peak.
        div: the peak over the start.
        div_final: the peak over the end.

    Raises:
        ValueError: `pct_start` is outside 0..1, `div` or `div_final` is not above 0, or `p` is nan.
    """
    if not 0 <= pct_start <= 1:
        raise ValueError(f"pct_start={pct_start!r}: it must be a share of the run, from 0 to 1")
    for name, value in (("div", div), ("div_final", div_final)):
        if not value > 0:
            raise ValueError(f"{name}={value!r}: the peak is divided by it, so it must be above 0")
    if math.isnan(p):
        raise ValueError(f"p={p!r}: it must be the share of the run done, from 0 to 1")
    p = min(max(p, 0.0), 1.0)
    if p < pct_start:
        begin, end, share = lr_max / div, lr_max, p / pct_start
    else:
        begin, end, share = lr_max, lr_max / div_final, (p - pct_start) / (1 - pct_start) if pct_start < 1 else 0.0
    return end + (begin - end) * (1 + math.cos(math.pi * share)) / 2

"""Few batch sizes for a compiled model, whose code or CUDA graph is made anew for each."""

from __future__ import annotations

from dataclasses import replace

from ..types import Decision

MOST = 8  # sizes in a run; torch gives up after so many compilations of a function (its `recompile_limit`)


def few_sizes(start: int, lowest: int, largest: int, unit: int = 1) -> tuple[int, ...]:
    """The sizes of a run on a compiled model: the start times powers of two, at most `MOST`, in rising order.

    If there are more, the smallest are left out. Below the start those count that are whole.

    Args:
        start: the size that the run starts with, samples.
        lowest: no size below the start is less than this.
        largest: no size is more than this.
        unit: each size is a multiple of it, as of the batches of a step.

    >>> few_sizes(64, 64, 2048), few_sizes(48, 12, 100), few_sizes(1, 1, 1000)
    ((64, 128, 256, 512, 1024, 2048), (12, 24, 48, 96), (1, 2, 4, 8, 16, 32, 64, 128))
    """
    above = [start]
    while 2 * above[-1] <= largest and len(above) < MOST:
        above.append(2 * above[-1])
    below: list[int] = []
    size = start
    while size % (2 * unit) == 0 and size // 2 >= lowest and len(above) + len(below) < MOST:
        size //= 2
        below.append(size)
    return (*reversed(below), *above)


def to_few(decision: Decision, batch_size: int, sizes: tuple[int, ...]) -> Decision:
    """The decision, at the largest of these sizes up to the wanted one. A batch that stays is left as it is.

    Args:
        decision: the wanted size, samples.
        batch_size: the present size, samples.
        sizes: in rising order. Empty: every size will do.
    """
    if not sizes or decision.batch_size == batch_size:
        return decision
    return replace(decision, batch_size=max((s for s in sizes if s <= decision.batch_size), default=sizes[0]))

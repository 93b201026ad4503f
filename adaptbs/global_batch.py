"""The global batch size of large training runs, which grows by gradient accumulation."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import astuple
from numbers import Real
from typing import Any

from .checks import check_share, check_size
from .decision import DecisionTimer, Ramp, critical_over_simple, geometric, largest_batch_size, next_on_ramp
from .hyperparameters import lr_rule
from .noise_scale import NoiseScaleTracker
from .ranks import Ranks
from .report import History, in_words
from .types import LogFunction, Measurement, NoiseScale, SquaredNorms

log = logging.getLogger(__name__)


class GlobalBatch:
    """Says how many micro-batches make the next optimizer step. Grows the global batch in a few large steps.

    For loops that load their own data, such as torchtitan's. The loop does two things: it accumulates
    `accumulation_steps` micro-batches, and it passes on the squared norms of the steps that it measures.

        batch = GlobalBatch(256, micro_batch_size=8, total=1_000_000)
        while batch.seen < batch.total:
            for _ in range(batch.accumulation_steps):
                (loss_of(next(data)) / batch.accumulation_steps).backward()
            norms = watch.norms(8)        # such as AccumulatedGradients'; None where nothing was measured
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            batch.step(norms)

    All sizes and lengths are in one unit, samples or tokens. A batch grows when the samples of the next size bring at
    least 0.8 of what they bring at the first size, by the cautious limit of the noise scale. It never shrinks.

    The learning rate is left to the scheduler. `lr_factor` is the factor that the rule of adaptbs would give it. The
    history records it.

    On several ranks, call `step` on all of them, either all with norms or all without. The estimate is rank 0's.

    Args:
        batch_size: the global batch size at the start, a multiple of `micro_batch_size * world_size`.
        micro_batch_size: what goes through the model at once, on one rank.
        total: length of the run.
        world_size: ranks that get different samples (the data-parallel degree). None: all of the default process group.
        max_batch_size: never exceeded. None: 32 times the start, of which 64 count, or 8 times it where that is more.
            Not with `ramp`, which ends with its last size.
        growth: factor from one size to the next, above 1. Sizes are rounded to what the ranks can share.
        ramp: planned sizes: pairs (seen, batch size), both rising. The plan is kept while the noise scale is not known
            well enough.
        shift: a size that `ramp` plans at s is begun between s / shift and s * shift. 1 keeps the plan, inf sets no
            bounds.
        acts: False only decides and records. Then `global_batch_size` follows the ramp, or stays at the start without
            one, and `wanted_batch_size` is the size decided on.
        adaptive: True if the optimizer divides its step by the gradient's size, as Adam does.
        decide_every: share of the run between two decisions.
        confidence: confidence of the reported interval of the noise scale.
        log: called as `log(values, seen)` at each measurement and decision. On several ranks rank 0 alone calls it.

    Attributes:
        seen: samples of all steps so far.
        total: length of the run.
        wanted_batch_size: the global batch size decided on.
        noise_scale: the estimate of the latest decision; None before the first.
        history: its records. `batch_size` is the size decided on, `global_batch_size` the one in force.

    Raises:
        TypeError, ValueError: if an argument is not valid.
    """

    def __init__(
        self,
        batch_size: int,
        *,
        micro_batch_size: int,
        total: float,
        world_size: int | None = None,
        max_batch_size: int | None = None,
        growth: float = 2.0,
        ramp: Sequence[tuple[float, int]] | None = None,
        shift: float = 2.0,
        acts: bool = True,
        adaptive: bool = True,
        decide_every: float = 0.01,
        confidence: float = 0.9,
        log: LogFunction | None = None,
    ) -> None:
        self._ranks = Ranks.from_arguments()
        world_size = self._ranks.world_size if world_size is None else world_size
        for name, value in (
            ("batch_size", batch_size), ("micro_batch_size", micro_batch_size), ("world_size", world_size)
        ):  # fmt: skip
            check_size(name, value)
        _check_number("total", total, above=0)
        _check_number("growth", growth, above=1)
        _check_number("shift", shift, above=1, or_equal=True, or_infinite=True)
        check_share("decide_every", decide_every)
        check_share("confidence", confidence)
        if log is not None and not callable(log):
            raise TypeError(f"log={log!r}: it must be a function, called as log(values, seen)")
        batch_size, self._micro = int(batch_size), int(micro_batch_size) * int(world_size)  # torch.load refuses NumPy's
        _check_shared("batch_size", batch_size, self._micro)
        if ramp is not None:
            if max_batch_size is not None:
                raise ValueError(f"{max_batch_size=} and ramp=: a ramp ends with its last size. Give one of the two")
            self._ramp = _planned(batch_size, ramp, shift, self._micro)
        else:
            largest = largest_batch_size(batch_size) if max_batch_size is None else max_batch_size
            check_size("max_batch_size", largest)
            if largest < batch_size:
                raise ValueError(f"{max_batch_size=} is below {batch_size=}, which the run starts with: raise it")
            self._ramp = Ramp(geometric(batch_size, int(largest), float(growth), self._micro))
        self.total, self.seen, self._acts, self._adaptive = total, 0, acts, adaptive
        self._ranks.check_alike(
            {"batch_size": batch_size, "micro_batch_size": int(micro_batch_size), "total": float(total), "acts": acts,
             "the ramp": astuple(self._ramp), "decide_every": float(decide_every), "confidence": float(confidence)},
            "give every rank the same arguments",
        )  # fmt: skip
        self._confidence = confidence
        self.wanted_batch_size = batch_size
        self.noise_scale: NoiseScale | None = None
        self._measurements = NoiseScaleTracker(math.ceil(total))
        self._timer = DecisionTimer(decide_every * total)
        self._bounds = self._bounds_here()
        self.history = History(log=log if self._ranks.rank == 0 else None)
        self._record("start", "start")

    @property
    def global_batch_size(self) -> int:
        """B, samples of the next optimizer step, over all ranks."""
        return self.wanted_batch_size if self._acts else self.planned_batch_size

    @property
    def planned_batch_size(self) -> int:
        """The size that the ramp plans for the next step; the first size without a ramp."""
        return self._ramp.sizes[self._ramp.planned(self.seen)]

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of each rank in the next optimizer step."""
        return self.global_batch_size // self._micro

    @property
    def progress(self) -> float:
        """Share of the run done, 0..1."""
        return min(self.seen / self.total, 1.0)

    @property
    def lr_factor(self) -> float:
        """Factor by which adaptbs would multiply the learning rate that was planned for the planned size.

        The rule is that of `lr_scaling="auto"` (docs/transfer.md). Nothing applies it.
        """
        planned, critical = self.planned_batch_size, critical_over_simple(self._adaptive)
        rule = lr_rule("auto", adaptive=self._adaptive, base_batch_size=planned, critical=critical)
        return rule(self.wanted_batch_size / planned, self.noise_scale)

    def step(self, norms: SquaredNorms | None = None) -> None:
        """Count an optimizer step of `global_batch_size`, and decide if it is time.

        Args:
            norms: squared norms of the gradients of that step, on every rank; those of rank 0 count. None, on every
                rank, if it was not measured. They may still be on the device, and are read at the next decision.
        """
        if norms is not None:
            self._check_norms(norms)
            self._measurements.add(self.seen, Measurement(norms, "given", "the loop's own gradients"), self.progress)
            self._timer.measured()
        self.seen += self.global_batch_size
        if self._timer.is_turn(self.seen) or self._bounds_here() != self._bounds:
            self._decide()

    def _check_norms(self, norms: SquaredNorms) -> None:
        if not isinstance(norms, SquaredNorms):
            raise TypeError(f"norms={norms!r}: they must be SquaredNorms, or None where the step was not measured")
        if not 0 < norms.small_size < norms.large_size:
            raise ValueError(
                f"norms.small_size={norms.small_size}, norms.large_size={norms.large_size}: noise shows only between "
                "gradients of two sizes, so the small one must be above 0 and below the large one. Give None where a "
                "step has only one micro-batch"
            )
        if norms.large_size > self.global_batch_size:
            raise ValueError(
                f"norms.large_size={norms.large_size} is above the global batch size of the step, "
                f"{self.global_batch_size}: give all sizes in one unit, samples or tokens, and step() the norms of the "
                "step just made"
            )

    def _bounds_here(self) -> tuple[int, ...]:
        ramp = self._ramp
        return ramp.latest(self.seen), ramp.planned(self.seen), ramp.earliest(self.seen)

    def _take_in(self) -> None:
        """Read the measurements since the last time into the history. The host waits for the device."""
        for samples, progress, made, norms in self._measurements.read():
            self.history.add_measurement(samples, progress, made, norms)

    def _decide(self) -> None:
        self._take_in()
        # Steps are measured by all ranks or none, so that the timers of all agree on when this is called.
        self.noise_scale = self._ranks.agree(self._measurements.estimate(self._confidence))
        before, critical = self.wanted_batch_size, critical_over_simple(self._adaptive)
        decision = next_on_ramp(
            self._ramp, before, self.seen, self.noise_scale, self._timer.new_measurements, critical
        )  # fmt: skip
        self.wanted_batch_size, self._bounds = decision.batch_size, self._bounds_here()
        if decision.batch_size != before:
            log.info(
                "global batch size %d -> %d (%s) at %.0f %%%s, planned is %d. The learning rate is left as it is; its "
                "factor would be %.3g",
                before, decision.batch_size, in_words(decision.reason), 100 * self.progress,
                "" if self._acts else ", only logged", self.planned_batch_size, self.lr_factor,
            )  # fmt: skip
        self._measurements.say(self.noise_scale, self.progress)
        self._timer.decided(self.seen)
        self._record("decision", decision.reason)

    def _record(self, event: str, reason: str) -> None:
        self.history.add_estimate(
            self.noise_scale, {}, event=event, reason=reason, doubt=self._measurements.doubt(self.noise_scale),
            samples=self.seen, progress=self.progress, batch_size=self.wanted_batch_size,
            global_batch_size=self.global_batch_size, lr_factor=self.lr_factor,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """State for `load_state_dict`: numbers, strings and containers of them. That of rank 0 serves all ranks."""
        self._take_in()
        return {
            "seen": self.seen,
            "wanted_batch_size": self.wanted_batch_size,
            "noise_scale": astuple(self.noise_scale) if self.noise_scale is not None else None,
            "measurements": self._measurements.state_dict(),
            "timer": self._timer.state_dict(),
            "bounds": list(self._bounds),
            "history": self.history.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state. Ranks, micro-batch and ramp may differ from those of the saved run.

        The batch continues at the largest of this run's sizes that is not above the saved one.

        Raises:
            ValueError: if it is not the state of a GlobalBatch.
        """
        if missing := [name for name in self.state_dict() if name not in state]:
            raise ValueError(f"the state has no {missing[0]!r}: give what GlobalBatch.state_dict() returned")
        self.seen = state["seen"]
        self.wanted_batch_size = self._ramp.sizes[self._ramp.at(state["wanted_batch_size"])]
        self.noise_scale = NoiseScale(*state["noise_scale"]) if state["noise_scale"] is not None else None
        self._measurements.load_state_dict(state["measurements"])
        self._timer.load_state_dict(state["timer"])
        self.history.load_state_dict(state["history"])
        self._bounds = tuple(state["bounds"])  # if this run's ramp has others here, the next step decides

    def __repr__(self) -> str:
        at = f"{self.global_batch_size} at {100 * self.progress:.0f} %"
        return f"GlobalBatch({at}, noise scale {self.noise_scale or 'not known yet'})"


def _planned(batch_size: int, ramp: Sequence[tuple[float, int]], shift: float, shared: int) -> Ramp:
    """Check the user's ramp, and make a Ramp of it."""
    try:
        starts, sizes = zip(*ramp, strict=True)
    except (TypeError, ValueError):
        raise TypeError(f"{ramp=}: it must be a list of pairs (seen, batch size), such as [(20_000, 512)]") from None
    for size in sizes:
        check_size("ramp", size)
        _check_shared("ramp", size, shared)
    for start in starts:
        _check_number("ramp", start, above=0)
    if any(list(rising) != sorted(set(rising)) for rising in (starts, (batch_size, *sizes))):
        raise ValueError(f"{batch_size=}, {ramp=}: the samples seen must rise from pair to pair, and so must the sizes")
    return Ramp((batch_size, *map(int, sizes)), (0, *starts), shift)


def _check_shared(name: str, size: int, shared: int) -> None:
    if size % shared:
        raise ValueError(
            f"{name}: {size} is no multiple of micro_batch_size * world_size = {shared}, and an optimizer step is made "
            f"of whole micro-batches. Give {max(size // shared, 1) * shared}, or a smaller micro-batch"
        )


def _check_number(name: str, value: object, *, above: float, or_equal: bool = False, or_infinite: bool = False) -> None:
    """Raise TypeError unless `value` is a number, ValueError unless it is above `above` and finite."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: it must be a number")
    number = float(value)
    if not (above < number < math.inf or (or_equal and number == above) or (or_infinite and number == math.inf)):
        least = f"at least {above}" if or_equal else f"above {above}"
        raise ValueError(f"{name}={value!r}: it must be {least}{'' if or_infinite else ' and finite'}")

"""Choose how to measure squared norms for a model, in its step or by halves, and turn them into measurements."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from torch import nn

from ..model import BatchLoss, NotCutError, batch_length, has_batch_norm, trainable
from ..types import COUPLED, Measurement, SquaredNorms
from .coupling import Coupling
from .halves import HalfBatches
from .in_step import BegunBeforeError, InStep
from .layers import COUNTED_TWICE, NOT_CALLED, NOT_ZEROED, ONE_ROW, PACKED
from .rows_seen import RowsSeen
from .terms import NotNow, Unsupported
from .views import View

log = logging.getLogger(__name__)

SHORT = 4  # samples; a shorter batch is skipped if longer ones have been seen
FEW_FOR_BATCH_NORM = 32  # samples; BatchNorm over fewer changes the noise scale (docs/believing.md)
PATIENCE = 3  # number of steps in a row that fail for one reason, after which the reason is taken as lasting

IN_STEP, HALVES = "in step", "halves"
ASKED_FOR, FOR_VIEWS = "asked for", "views of the gradient are measured that way"  # reasons that arguments give


class NoiseMeter:
    """Measures squared norms in the loop's own training step, or by halves in a pass of its own.

    "auto" measures in the step. If the model cannot be measured there, it changes to halves, for which the loss has to
    be known. Without a loss nothing can be measured then: `Unsupported` says why.

    Args:
        model: the model.
        loss: its loss on a batch; None if it is not known.
        choice: "auto", "in_step" or "halves".
        views: views of the gradients to measure as well, by name. Only halves can measure them.
        parameters: returns the parameters that the optimizer steps.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: BatchLoss | None,
        *,
        choice: str = "auto",
        views: Mapping[str, View] | None = None,
        parameters: Callable[[], Sequence[nn.Parameter]] | None = None,
    ) -> None:
        self._model, self.loss, self._choice, self._parameters = model, loss, choice, parameters
        self._finds_out = choice == "auto" and not views  # which source will do; else it is given
        self._in_step = InStep(model, parameters)
        self._halves = HalfBatches(model, loss, views) if loss is not None else None
        self._coupling = Coupling(model, loss) if loss is not None else None
        self._longest, self._rows_seen = 0, RowsSeen()  # rows of the longest batch, and of the latest ones
        self._missed = self._not_now = 0  # steps in a row that told nothing; that tell nothing now, though others may
        self._repeated = 0  # steps in a row that went through examples several times
        given = ASKED_FOR if choice == "halves" else FOR_VIEWS if views else None
        self._source, self._why = (HALVES, given) if given else (IN_STEP, "what the layers see in the step")

    @property
    def in_step(self) -> bool:
        """True while the loop's own step is measured."""
        return self._source == IN_STEP

    @property
    def fewest(self) -> int:
        """Samples of the shortest batch that shows noise."""
        return 2 if self.in_step or self._halves is None else self._halves.fewest

    @property
    def sums(self) -> bool | None:
        """True if the loss sums over its samples, False if it does not, None while no batch has shown that."""
        if not self.in_step and self._halves is not None:
            return self._halves.mean_gradient.sums
        return self._coupling.sums if self._coupling is not None else None

    @property
    def is_armed(self) -> bool:
        """True while the loop's step is being watched."""
        return self._in_step.is_armed

    def begin(self, batch: Any, samples: int, sizes: Sequence[int]) -> Measurement | None:
        """Begin to watch the step that comes, or measure the batch at once in a pass of its own.

        Args:
            batch: nested tensors, with samples along their first dimension.
            samples: number of samples that the batch was made from.
            sizes: lengths of the batches that the loop may work on, samples.

        Returns:
            The measurement by halves, with its norms on the device; None if the batch is too short, if no parameter
            trains, or if the step is watched.

        Raises:
            Unsupported: if the model cannot be measured at all; the message says what to give.
        """
        if not trainable(self._model):
            return None  # the whole model may be frozen for a while
        looked = self.in_step
        if self.in_step:
            self.watch(sizes)
            if self._in_step.is_armed:
                return None
        return self._by_halves(batch, samples, looked=looked)

    @property
    def looks(self) -> bool:
        """True while `look` has more batches to examine."""
        return self._coupling is not None and not self._coupling.is_done

    def look(self, batch: Any, samples: int) -> None:
        """Examine a batch whose step will be watched for a loss that couples samples. A few batches are enough.

        `begin` does the same for a batch that is measured by halves.

        Raises:
            LossNotScalarError: if the loss is not one number.
        """
        if self._coupling is not None and trainable(self._model):
            said = samples if self.loss is not None and self.loss.split_given else None
            self._coupling.look(batch, samples=said)

    @property
    def outside(self) -> list[str]:
        """Names of the views of parameter groups outside of the model, which are not measured."""
        return self._halves.outside if self._halves is not None else []

    def first(self, batch: Any, samples: int) -> Any:
        """The first samples of a batch. Raises NotCutError if it is not certain which entries are theirs."""
        return self.loss.split(batch, 0, samples) if self.loss is not None else batch

    def watch(self, sizes: Sequence[int]) -> None:
        """Watch the step that comes, or change to halves if that is not possible."""
        try:
            self._in_step.arm(*sizes)
        except Unsupported as error:
            self._change(error)

    def expect(self, *sizes: int) -> None:
        """Say which lengths the batches of the watched step may have, samples."""
        self._in_step.expect(*sizes)

    def stop(self) -> None:
        """Stop watching, and drop everything seen."""
        self._in_step.disarm()

    def end(self, samples: int, sizes: Sequence[int], batches: int = 1) -> Measurement | None:
        """The measurement of the step that was watched, when its gradients are ready.

        Args:
            samples: samples delivered while it was watched.
            sizes: lengths of the batches that it may have been made of.
            batches: number of batches delivered while it was watched.

        Returns:
            None if there is nothing to tell: no backward pass was seen, or the step had begun before, and the next is
            watched; the layers' tensors did not show where the examples are; or the step has a single example.

        Raises:
            Unsupported: if the model cannot be measured in its step and its loss is not known.
        """
        norms = self._norms_of_the_step(sizes)
        if norms is None:
            return None
        rows_of_passes, uses = self._in_step.examples, self._in_step.uses
        self._in_step.disarm()
        if norms.large_size < 2:  # one example shows no noise
            if samples > 1:
                self._miss(ONE_ROW.format(samples))
            return None
        self._missed, self._not_now = 0, self._not_now * (self._not_now >= PATIENCE)  # at that it was said, once a run
        if (passes := len(rows_of_passes)) > batches and norms.large_size > samples:
            self._repeat(passes, batches)
            return None
        self._repeated = 0
        if self._coupling is not None:
            norms = self._coupling.as_of_mean(norms)
        # One pass for several batches whose losses were added up sees the rows of all of them as those of one.
        added_up = passes == 1 < batches <= uses
        rows_are_samples = norms.large_size == samples or (all(n in sizes for n in rows_of_passes) and not added_up)
        caveat = None if rows_are_samples else f"{norms.large_size} rows of {samples} samples"
        wrong = self._rows_seen.are_wrong(samples if rows_are_samples else norms.large_size, samples)
        doubt = self._in_step.comparisons.doubt
        return Measurement(norms, IN_STEP, self._why, lambda: self._coupled() or doubt() or caveat, wrong)

    def _norms_of_the_step(self, sizes: Sequence[int]) -> SquaredNorms | None:
        """The norms of the step that was watched. None if it has none to tell, of which note is taken."""
        try:
            norms = self._in_step.norms()
        except BegunBeforeError:
            self.watch(sizes)  # the next step is watched from its beginning
            self._miss(NOT_ZEROED)
        except NotNow as why:
            self._in_step.disarm()
            self._not_now += 1
            log.log(logging.WARNING if self._not_now == PATIENCE else logging.INFO, "a step was not measured: %s", why)
        except Unsupported as error:
            self._change(error)
        else:
            if norms is None:
                self._miss(NOT_CALLED)
            return norms
        return None

    def _repeat(self, passes: int, batches: int) -> None:
        """Take note of a step that goes through its batches several times."""
        # An example's term would be the sum of those of its passes, which are not kept that long.
        several = f"{passes} backward passes are made for {batches} of its batches"
        self._repeated += 1
        log.info("a step was not measured: %s", several)
        if self._repeated >= PATIENCE:
            self._change(Unsupported(several + COUNTED_TWICE))

    def _miss(self, why: str) -> None:
        """Take note of a step that tells nothing for this reason, which is there to stay after a few in a row."""
        self._missed += 1
        if self._missed >= PATIENCE:
            self._change(Unsupported(why))

    def _by_halves(self, batch: Any, samples: int, *, looked: bool) -> Measurement | None:
        assert self._halves is not None
        said = samples if self.loss is not None and self.loss.split_given else None  # of parts that the user cuts
        rows = batch_length(batch) if said is None else said
        self._longest = max(self._longest, rows)
        if rows < SHORT <= self._longest:
            return None  # the last few samples of an epoch; a model that never trains on one sample may fail on it
        if not looked:
            self.look(batch, samples)
        if (norms := self._halves.measure(batch, said)) is None:
            if rows == 1 < samples:
                raise NotCutError(PACKED.format(samples))
            return None
        caveat = self._caveat(norms, rows, samples)
        wrong = self._rows_seen.are_wrong(rows, samples)
        return Measurement(norms, HALVES, self._why, lambda: self._coupled() or caveat, wrong)

    def _change(self, why: Unsupported) -> None:
        """Measure by halves from here on, because the step cannot be measured."""
        self._in_step.disarm()
        if self._halves is None:
            raise Unsupported(f"this model cannot be measured in the step that trains: {why}") from None
        if self._choice == "in_step":
            raise Unsupported(f"source='in_step' cannot measure this model: {why}. Use source='auto'") from None
        self._source, self._why = HALVES, str(why)
        log.info("the noise scale is measured by halves: %s", why)

    @property
    def bytes_beside_step(self) -> int:
        """Bytes that a measurement may hold beyond a step under `watching`."""
        return self._halves.bytes_beside_step if self._halves is not None and not self.in_step else 0

    @contextmanager
    def watching(self, size: int) -> Iterator[None]:
        """Watch passes of `size` samples that are no step of the loop, if steps are watched. Drops what is seen."""
        # Every pass is checked like the first step, which holds the most memory.
        apart = InStep(self._model, self._parameters)
        try:
            with suppress(Unsupported):  # then the loop's step cannot be measured either
                if self.in_step:
                    apart.arm(size)
            yield
        finally:
            apart.disarm()

    def state_dict(self) -> dict[str, Any]:
        """The chosen source and facts about model and loss."""
        return {
            "source": self._source, "why": self._why, "longest": self._longest,
            "rows_seen": self._rows_seen.state_dict(),
            "coupling": self._coupling.state_dict() if self._coupling is not None else None,
            "gradients": self._halves.mean_gradient.state_dict() if self._halves is not None else None,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state, by the source that was found out. One that is asked for is its run's own."""
        was_found_out = state["why"] not in (ASKED_FOR, FOR_VIEWS)
        if self._finds_out and was_found_out and (state["source"] == IN_STEP or self._halves is not None):
            self._source, self._why = state["source"], state["why"]
        self._longest = state["longest"]
        self._rows_seen.load_state_dict(state.get("rows_seen", []))  # which older states lack
        if self._coupling is not None and state["coupling"] is not None:
            self._coupling.load_state_dict(state["coupling"])
        if self._halves is not None and state["gradients"] is not None:
            self._halves.mean_gradient.load_state_dict(state["gradients"])

    def _coupled(self) -> str | None:
        return COUPLED if self._coupling is not None and self._coupling.found else None

    def _caveat(self, norms: SquaredNorms, rows: int, samples: int) -> str | None:
        if rows != samples:
            return f"{rows} rows of {samples} samples"
        if norms.small_size < FEW_FOR_BATCH_NORM and has_batch_norm(self._model):
            return f"BatchNorm over {norms.small_size}"
        return None

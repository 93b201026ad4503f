"""Reasons to keep the batch as it is."""

from __future__ import annotations

import logging

from ..types import COUPLED, Decision

log = logging.getLogger(__name__)

NOT_SAMPLES = "rows are not samples"  # reason to hold it where the noise scale is that of something else
ACCUMULATES = "gradients are accumulated unsaid"  # reason to hold it where a step is made of more than it is told
NOT_CUT = "batch cannot be cut"  # reason to hold it where it would have to be
RATE = "learning rate does not follow the samples"  # reason to hold it where the rate may go by a count of batches
ROWS = "rows do not follow samples"  # reason to hold it where a larger batch would lose samples
UNMEASURED = "noise scale cannot be measured"  # reason to hold it, where the target needs that
FIRST_STEPS = 8  # optimizer steps in which most doubts show: three steps are measured in them

COUPLES = (
    "the loss couples samples, as a contrastive one does: the losses of a batch's halves make neither a mean nor a "
    "sum. A larger batch would be another loss, so the batch is held. Train at the batch that the loss was tuned at "
    "(overhead=0 spares the measuring), or choose another by a function as target=. If it adds up a sum over samples "
    "and something else, such as a mean or a penalty on weights, take the mean of the samples instead."
)
SEVERAL = "%d things about this run are in doubt. Each line says what to give or to write:%s"


class Holds:
    """Holds the batch for as long as something that it depends on is not clear. A held run is the run without adaptbs.

    A face adds a reason when a doubt arises, and removes it when it is settled. Adding one twice is adding it once.

    The warnings of the first steps are gathered and logged as one, so that a run of which little can be known is told
    at once all that is to be given. Later ones are logged when they arise.

    Args:
        batches_per_step: batches of an optimizer step.

    Attributes:
        gathers: True while warnings are gathered.
    """

    def __init__(self, batches_per_step: int = 1) -> None:
        self._reasons: dict[str, None] = {}  # keeps their order
        self.gathers, self._left = True, FIRST_STEPS * batches_per_step  # batches
        self._gathered: dict[str, None] = {}

    def doubt(self, reason: str, warning: str, *values: object) -> None:
        """Hold the batch for this reason, and log the warning that says what to do."""
        self.add(reason)
        self.warn(warning, *values)

    def warn(self, text: str, *values: object) -> None:
        """Log a warning, in the first steps together with the others of these."""
        if self.gathers:
            self._gathered.setdefault(text % values if values else text)
        else:
            log.warning(text, *values)

    def count_batch(self) -> None:
        """Count a delivered batch. After those of the first steps log all that was gathered."""
        self._left -= 1
        if self._left < 0:
            self.say()

    def say(self) -> None:
        """Log what was gathered, as one warning, and gather no more."""
        self.gathers, texts, self._gathered = False, tuple(self._gathered), {}
        if len(texts) > 1:
            log.warning(SEVERAL, len(texts), "".join(f"\n- {text}" for text in texts))
        elif texts:
            log.warning("%s", *texts)

    def add(self, reason: str) -> None:
        """Hold the batch for this reason too."""
        self._reasons.setdefault(reason)

    def remove(self, reason: str) -> None:
        """Hold the batch no longer for this reason."""
        self._reasons.pop(reason, None)

    @property
    def reason(self) -> str | None:
        """The oldest reason; None where the batch is not held."""
        return next(iter(self._reasons), None)

    def state_dict(self) -> list[str]:
        return list(self._reasons)

    def load_state_dict(self, state: list[str]) -> None:
        """Hold for the reasons of the saved run, too. A face removes those that it sees to be settled.

        Whether it can be measured each run finds out anew, as it may have been given the loss meanwhile.
        """
        for reason in state:
            if reason != UNMEASURED:
                self.add(reason)

    def apply(self, decision: Decision, batch_size: int) -> Decision:
        """The decision, or that to keep `batch_size`, samples. Warns once where the loss couples samples."""
        if decision.reason == COUPLED and COUPLED not in self._reasons:
            self.doubt(COUPLED, COUPLES)
        return Decision(batch_size, self.reason) if self.reason is not None else decision

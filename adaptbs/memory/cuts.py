"""Cuts a batch into pieces, once it is certain that the losses of the pieces add up to the batch's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ..model import ADVICE, BatchLoss, NotCutError, without_chance
from .recovery import is_out_of_memory

UNTIL = "Until then the batch is held, and is not run in pieces if memory runs out"

FEW = 8  # samples of the check that the parts' losses add up to the whole's
OFF = 1e-3  # relative; more than rounding, less than the effect of other denominators or of other samples' targets


def bounds(samples: int, pieces: int) -> list[int]:
    """The ends of `pieces` pieces that are as equally long as possible. The first is 0, the last is `samples`."""
    return [samples * i // pieces for i in range(pieces + 1)]


def lengths(samples: int, pieces: int) -> list[int]:
    """The samples of each of `pieces` pieces that are as equally long as possible."""
    return [end - begin for begin, end in pairwise(bounds(samples, pieces))]


class BatchCuts:
    """Cuts batches, after the first cut has been verified on a few samples.

    Parts with losses l_i have shares s_i: 1 each for a loss that sums, and for a mean each part's weight over the total
    weight. The loss of the whole must be sum s_i l_i. That fails for a contrastive loss and for a mean over boxes. The
    user's own `split` is relied on without a check.

    Args:
        loss: the loss of a batch, with its `split`.
        model: the model.
        shares: function (batch, samples, its parts) -> shares of the parts.
        on_refused: called with the reason, the first time that a batch cannot be cut.
    """

    def __init__(
        self,
        loss: BatchLoss,
        model: nn.Module,
        shares: Callable[[Any, int, Sequence[Any]], list[float]],
        on_refused: Callable[[str], None],
    ) -> None:
        self._loss, self._model, self._shares, self._on_refused = loss, model, shares, on_refused
        self._verified: str | bool | None = None  # None: not yet; else True, or the reason why not
        self._said = False

    def in_pieces(self, batch: Any, samples: int, pieces: int) -> list[Any]:
        """The batch cut into `pieces` pieces that are as equally long as possible."""
        if pieces == 1:
            return [batch]
        return [self._loss.split(batch, begin, end) for begin, end in pairwise(bounds(samples, pieces))]

    def why_not(self, batch: Any, samples: int) -> str | None:
        """The reason why the batch cannot be cut, and the remedy; None if it can."""
        if self._loss.split_given:
            return None
        reason = self._reason(batch, samples)
        if reason is not None and not self._said:
            self._said = True
            self._on_refused(f"{reason}. {UNTIL}")
        return reason

    def _reason(self, batch: Any, samples: int) -> str | None:
        try:
            self._loss.split(batch, 0, samples // 2)
        except NotCutError as error:
            return str(error)
        except Exception as error:  # a tensor of a kind that cannot be sliced
            return f"the batch cannot be cut: {type(error).__name__}: {error}. {ADVICE}"
        if self._verified is None:
            self._verified = self._verify(batch, samples)
        return self._verified if isinstance(self._verified, str) else None

    def _verify(self, batch: Any, samples: int) -> str | bool | None:
        n, failure = min(samples, FEW) // 2 * 2, None
        if n < 2:
            return None  # shows nothing
        try:
            # Two cuts, because two halves may happen to have the same number of targets.
            found = [self._losses(batch, n, middle) for middle in sorted({n // 2, max(n // 4, 1)})]
        except Exception as error:  # the model or the loss refuses a part, or even `n` samples do not fit
            if not is_out_of_memory(error):
                return f"a part of the batch cannot be run: {type(error).__name__}: {error}. {ADVICE}"
            failure = error.with_traceback(None)
        if failure is not None:
            return self._verify(batch, n - 2)
        for whole, together, most in found:
            if abs(together - whole) > most:
                return (
                    f"the losses of two parts of the batch add up to {together:.4g}, and that of the whole is "
                    f"{whole:.4g}, so training on parts would be another training. {ADVICE} if the loss is a mean or "
                    "a sum over samples"
                )
        return True if all(most > 0 for _, _, most in found) else None

    def _losses(self, batch: Any, n: int, middle: int) -> tuple[float, float, float]:
        """The loss of n samples, that of the two parts at the middle combined, and the tolerated difference."""
        whole, *parts = (self._loss.split(batch, *span) for span in ((0, n), (0, middle), (middle, n)))
        with torch.enable_grad(), without_chance(self._model), self._loss.preserving(self._model):
            shares = self._shares(whole, n, parts)
            losses = [self._loss(self._model, each) for each in (whole, *parts)]
        of_whole, *of_parts = (loss.item() for loss in losses)
        # A part whose targets are all ignored has no loss, and counts for nothing.
        together = sum(share * loss for share, loss in zip(shares, of_parts, strict=True) if share)
        if not (math.isfinite(of_whole) and math.isfinite(together)):
            return 0.0, 0.0, 0.0  # shows nothing
        off = max(OFF, 2 * torch.finfo(losses[0].dtype).eps)  # eps of a loss in half precision is larger
        return of_whole, together, off * max(abs(of_whole), *map(abs, of_parts))

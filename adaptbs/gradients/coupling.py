"""Detect losses that are neither a mean nor a sum over samples. Every noise-scale formula assumes one of the two."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..model import BatchLoss, LossNotScalarError, RandomStates, batch_length, describe_batch, without_chance
from ..types import ENOUGH, SquaredNorms

log = logging.getLogger(__name__)

LOOKS = ENOUGH  # number of batches examined, so that the first decision knows the answer
FEWEST_EXAMINED = 16  # samples; in smaller batches class weights and ignored targets could look like coupling
# Share of the loss. Weights of samples rarely change a mean loss by this much in every batch. A contrastive loss
# changes by log 2 / log n.
OFF = 0.05
EXACT = 1e-3  # relative; the halves of a sum add up this closely, whatever the weights of the samples
SURE = 5.84  # Student's t at 99 % for `LOOKS` values, where the loss itself is random


class Coupling:
    """Compares the losses of two halves of a batch with the loss of the whole batch, for the first few batches.

    The losses of the halves add up to once the whole loss if it is a sum, and to twice the whole loss if it is a mean.
    A contrastive loss does neither, since more samples are harder to tell apart. A sum is exact, and a mean over
    weighted samples is not, so anything but an exact sum is compared with a mean. A loss that draws random numbers, as
    those of a VAE and of a diffusion model do, is another one at each call. Then the scatter of the ratios says how far
    from once and from twice their mean may be. The model's state is restored.

    Args:
        model: the model.
        batch_loss: its loss on a batch.
    """

    def __init__(self, model: nn.Module, batch_loss: BatchLoss) -> None:
        self._model, self._batch_loss = model, batch_loss
        self._ratios: list[Tensor | float] = []  # losses of two halves over that of the whole batch
        self._looks = LOOKS
        self._by_chance = False  # True once the loss has drawn random numbers
        self._first: int | None = None  # samples of the first step whose norms were taken as those of a mean
        self._called = False  # True once the loss was called on a batch of any length

    @property
    def is_done(self) -> bool:
        """True once enough batches have been examined."""
        return not self._looks

    @property
    def found(self) -> bool:
        """True if all `LOOKS` batches deviated from a mean by more than `OFF`, all in the same direction.

        Deviations that come from samples' weights have a random sign. This waits for the device.
        """
        if self._looks:
            return False
        ratios = self._read()
        if len(ratios) < LOOKS or all(abs(ratio - 1) < EXACT for ratio in ratios):
            return False
        deviations = [ratio / 2 - 1 for ratio in ratios]
        is_off = min(deviations) > OFF or max(deviations) < -OFF
        return is_off and not (self._by_chance and (_could_be(1, ratios) or _could_be(2, ratios)))

    @property
    def sums(self) -> bool | None:
        """True if the loss is a sum over samples, None before `LOOKS` batches have been examined."""
        if self._looks or not self._ratios:
            return None
        read = self._read()
        if len(read) == LOOKS and self._by_chance:
            return _could_be(1, read) and not _could_be(2, read)
        return bool(read) and all(abs(ratio - 1) < EXACT for ratio in read)

    def as_of_mean(self, norms: SquaredNorms) -> SquaredNorms:
        """The norms of a step's gradients, those of a sum as those of the mean up to a constant factor.

        A sum over n samples has n times the gradient of the mean. Where the loss says that it sums, the norms are
        divided by n^2. Where that has shown in the first steps, which were measured as they are, they are divided by
        the square of n over the n of these. That waits for the device once, and not where the loss says that it is a
        mean.
        """
        self._first, said = self._first or norms.large_size, self._batch_loss.reduction
        if said == "sum":
            return norms.divided_by(norms.large_size**2)
        return norms.divided_by((norms.large_size / self._first) ** 2) if said is None and self.sums else norms

    def state_dict(self) -> dict[str, Any]:
        state = {"looks": self._looks, "by_chance": self._by_chance, "first": self._first}
        return {"ratios": self._read(), **state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._ratios, self._looks = list(state["ratios"]), state["looks"]
        self._by_chance, self._first = state["by_chance"], state["first"]

    def look(self, batch: Any, agreed: Callable[[float], float] | None = None, samples: int | None = None) -> None:
        """Examine a batch. Does nothing once `LOOKS` batches have been examined.

        Args:
            batch: the batch, skipped if it has fewer than `FEWEST_EXAMINED` samples.
            agreed: function from this rank's ratio of losses to the one all ranks agree on, where nan means that a rank
                could not compute it. With it the caller must check the number of samples, so that either all ranks call
                this or none.
            samples: samples of the batch. None: read from its layout.

        Raises:
            LossNotScalarError: if the loss is not one number, which the first batch shows.
        """
        if not self._looks:
            return
        if agreed is None and not _long_enough(batch, samples):
            if not self._called:
                self._call_once(batch)
            return
        self._called = True
        self._looks -= 1
        ratio: Tensor | float = math.nan
        try:
            ratio = self._ratio(batch, samples)
        except LossNotScalarError:
            raise  # a fault of the argument
        except Exception as error:  # any fault that matters shows in the measurement too
            log.info(
                "the loss could not be called to see whether it couples samples: %s: %s (on a batch of %s)",
                type(error).__name__, str(error), describe_batch(batch),
            )  # fmt: skip
            # The other ranks call again, so with `agreed` this rank must too.
            self._looks = self._looks if agreed else 0
        self._ratios.append(ratio if agreed is None else agreed(float(ratio)))

    def _read(self) -> list[float]:
        """Read the ratios, those on the device together, as each reading waits. Drops those that are not finite."""
        away = [ratio for ratio in self._ratios if isinstance(ratio, Tensor)]
        values = iter(torch.stack([ratio.to(away[0].device) for ratio in away]).tolist() if away else ())
        read = [next(values) if isinstance(ratio, Tensor) else ratio for ratio in self._ratios]
        finite = [ratio for ratio in read if math.isfinite(ratio)]
        self._ratios = list(finite)
        return finite

    def _call_once(self, batch: Any) -> None:
        try:
            with torch.no_grad(), self._batch_loss.preserving(self._model):
                self._batch_loss(self._model, batch)
            self._called = True
        except LossNotScalarError:
            raise
        except Exception as error:  # such as a batch of None, which a loop may skip
            what = type(error).__name__, str(error), describe_batch(batch)
            log.info("the loss could not be called: %s: %s (on a batch of %s)", *what)

    def _ratio(self, batch: Any, samples: int | None) -> Tensor:
        n = (batch_length(batch) if samples is None else samples) // 2 * 2
        slices = [self._batch_loss.split(batch, *span) for span in ((0, n), (0, n // 2), (n // 2, n))]
        losses, generators = [], self._batch_loss.generators(self._model)
        with torch.enable_grad(), without_chance(self._model):
            for each in slices:
                # Each from the same state: a loss that is weighted by its count of calls would else look coupled.
                with self._batch_loss.preserving(self._model):
                    before = RandomStates(self._model, generators)
                    losses.append(self._batch_loss(self._model, each).detach().reshape(()))
                    self._by_chance = self._by_chance or before.moved
        whole, *halves = losses
        return torch.stack(halves).sum() / whole  # nan or inf where the loss is 0


def _could_be(value: float, ratios: Sequence[float]) -> bool:
    """True if the mean of the ratios may be `value`, by their scatter and the weights of samples."""
    error = statistics.stdev(ratios) / math.sqrt(len(ratios))
    return abs(statistics.fmean(ratios) - value) <= OFF * value + SURE * error


def _long_enough(batch: Any, samples: int | None) -> bool:
    try:
        return (batch_length(batch) if samples is None else samples) >= FEWEST_EXAMINED
    except TypeError:  # a batch without tensors, as a loop may get and skip
        return False

"""Measures the noise scale on blocks of batches, each at fixed weights, and restores the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from ..gradients import GradientPool, MeanGradient, squared_norm
from ..model import BatchLoss, batch_length, preserved_grads, preserved_weights
from ..noise_scale import estimate, to_floats
from ..types import NoiseScale, SquaredNorms
from .doubts import FinderDoubts
from .step_timer import measure_step_time, train_step

if TYPE_CHECKING:
    from ..timing import Time


class Measured(NamedTuple):
    """The measurements of the finder.

    Attributes:
        curve: the smoothed estimate after each block that could be measured; one or more.
        samples: samples seen up to each of them.
        batch_size: size of the measured batches, samples.
        block: the longest block.
        step_time: t(B), seconds of a training step; None if it could not be measured.
    """

    curve: list[NoiseScale]
    samples: list[int]
    batch_size: int
    block: list[Any]
    step_time: Time | None


def measure_blocks(
    model: nn.Module,
    loss: BatchLoss,
    batches: Iterator[Any],
    make_optimizer: Callable[[float], Any],
    *,
    lr: float | None,
    n_batch: int,
    beta: float,
    confidence: float,
    samples_of_batch: int | None,
) -> Measured:
    """Measure all blocks of the batches. The arguments are those of `find_batch_size`.

    Raises:
        ValueError: if no block has two batches of equal size and finite gradient.
    """
    norms: list[SquaredNorms] = []
    curve: list[NoiseScale] = []
    samples: list[int] = []
    seen, longest, doubts = 0, list[Any](), FinderDoubts(model, loss, samples_of_batch)
    # The user's gradient hooks may step an optimizer. They must not see the gradients of these steps.
    with loss.preserving(model), preserved_weights(model), preserved_grads(model.parameters()):
        model.train()
        gradient, optimizer = MeanGradient(loss), make_optimizer(lr) if lr is not None else None
        while block := list(islice(batches, n_batch)):
            seen += sum(batch_length(batch) for batch in block)
            for batch in block:
                doubts.look(batch)
            measured = measure_block(model, gradient, block)
            if measured is not None:
                norms += to_floats([measured])
                weights = [n.large_size * beta**age for age, n in enumerate(reversed(norms))][::-1]
                curve.append(estimate(norms, weights, confidence))
                samples.append(seen)
            if optimizer is not None:
                for batch in block:
                    train_step(model, loss, optimizer, batch)
            longest = max(block, longest, key=len)
        if not curve:
            raise ValueError(
                "the loader gave fewer than two batches of equal size and finite gradient: "
                "lower its batch size or raise num_it"
            )
        step_time = measure_step_time(model, loss, lambda: make_optimizer(lr or 0.0), longest)
    curve = [replace(each, caveat=doubts.reason) for each in curve]
    return Measured(curve, samples, norms[0].small_size, longest, step_time)


def measure_block(model: nn.Module, gradient: MeanGradient, block: list[Any]) -> SquaredNorms | None:
    """Pool the batches of a block over all pairs, at the current weights. None if fewer than two are equally long.

    A batch whose gradient is not finite is left out. In float16 a gradient may overflow; the next one is scaled less.
    """
    size = batch_length(block[0])
    alike = [batch for batch in block if batch_length(batch) == size]
    pool, pooled = GradientPool(size), 0
    for batch in alike if len(alike) > 1 else []:
        found = gradient(model, batch)
        if squared_norm(found).isfinite():  # waits for the device, which costs little here, unlike in training
            pool.add(found)
            pooled += 1
    return pool.norms() if pooled > 1 else None

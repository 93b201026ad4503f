"""Measures the noise scale on blocks of batches, each at fixed weights, and restores the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from ..gradients import GradientPool, MeanGradient, squared_norm
from ..model import BatchLoss, batch_length, parameters_of, preserved_grads, preserved_weights
from ..noise_scale import estimate, is_finite, to_floats
from ..types import ENOUGH, NoiseScale, SquaredNorms
from .doubts import FinderDoubts
from .step_timer import measure_step_time, train_step

if TYPE_CHECKING:
    from ..timing import Time


BLOCK = 20  # batches of a block, where there are enough

NO_BATCH = (
    "the loader gave no batch. Give one that has some: not an iterator that is used up, and none whose drop_last "
    "leaves out its only batch"
)
NO_PAIR = (
    "the loader gave fewer than two batches of equal size in a block, between which noise would show: lower its batch "
    "size, or raise num_it or n_batch. A batch is as long as its first tensor: where that is of all samples put end to "
    "end, as of graphs joined to one, let collate_fn= put a tensor with a row a sample before it"
)
NO_FINITE = (
    "no two gradients of equally large batches were finite (nan or inf), so they show no noise: look at the loss, at "
    "the data, and at the learning rate that the model was trained with"
)


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
        ValueError: if no block has two batches of equal size, or no two of their gradients are finite.
    """
    norms: list[SquaredNorms] = []
    curve: list[NoiseScale] = []
    samples: list[int] = []
    seen, longest, doubts = 0, list[Any](), FinderDoubts(model, loss, samples_of_batch)
    has_pair = False  # True once a block had two batches that could be compared
    trained = [*loss.parameters(model), *parameters_of(make_optimizer(0.0))]  # a loss may have some of its own
    # The user's gradient hooks may step an optimizer. They must not see the gradients of these steps.
    with loss.preserving(model), preserved_weights(model, trained), preserved_grads(trained):
        model.train()
        gradient, optimizer = MeanGradient(loss), make_optimizer(lr) if lr is not None else None
        while block := list(islice(batches, n_batch)):
            seen += sum(batch_length(batch) for batch in block)
            for batch in block:
                doubts.look(batch)
            has_pair = has_pair or len(alike_of(block)) > 1
            measured = measure_block(model, gradient, block)
            read = to_floats([measured] if measured is not None else [])
            if read and is_finite(read[0]):
                norms += read
                weights = [n.large_size * beta**age for age, n in enumerate(reversed(norms))][::-1]
                curve.append(estimate(norms, weights, confidence))
                samples.append(seen)
            if optimizer is not None:
                for batch in block:
                    train_step(model, loss, optimizer, batch)
            longest = max(block, longest, key=len)
        if not curve:
            raise ValueError(NO_FINITE if has_pair else NO_PAIR if seen else NO_BATCH)
        step_time = measure_step_time(model, loss, lambda: make_optimizer(lr or 0.0), longest)
    curve = [replace(each, caveat=doubts.reason) for each in curve]
    return Measured(curve, samples, norms[0].small_size, longest, step_time)


def measure_block(model: nn.Module, gradient: MeanGradient, block: list[Any]) -> SquaredNorms | None:
    """Pool the batches of a block over all pairs, at the current weights. None if fewer than two are equally long.

    A batch whose gradient is not finite is left out. In float16 a gradient may overflow; the next one is scaled less.
    """
    alike = alike_of(block)
    pool, pooled = GradientPool(batch_length(block[0])), 0
    for batch in alike if len(alike) > 1 else []:
        found = gradient(model, batch)
        if squared_norm(found).isfinite():  # waits for the device, which costs little here, unlike in training
            pool.add(found)
            pooled += 1
    return pool.norms() if pooled > 1 else None


def alike_of(block: list[Any]) -> list[Any]:
    """The batches of a block that are as long as its first."""
    size = batch_length(block[0])
    return [batch for batch in block if batch_length(batch) == size]


def block_length(batches: int | None) -> int:
    """Batches of a block for so many batches, at least two: few enough that an estimate can be made of the blocks.

    Args:
        batches: number of batches to measure. None: not known.
    """
    return BLOCK if batches is None else min(BLOCK, max(batches // ENOUGH, 2))

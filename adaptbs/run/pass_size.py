"""Lets a model's running statistics follow the samples that go through it at once."""

from __future__ import annotations

import math

from torch import nn

from ..hyperparameters import RunningStatistics
from .controller import Controller


class FollowPassSize:
    """Sets the momentum of a model's running statistics by the size that batches are cut at; see `RunningStatistics`.

    A pass holds k times the samples of the base batch, except where a batch goes through the model in micro-batches:
    their size may stay as it is, and then so does the momentum.

    It knows the controller and not the run, which would otherwise be part of a circle and outlive its loader.

    Args:
        model: the model that is trained.
        controller: the controller of the run.
        micro_batch_size: the most samples that go through the model at once; None where batches go through whole.
    """

    def __init__(self, model: nn.Module, controller: Controller, micro_batch_size: int | None) -> None:
        self._statistics, self._controller = RunningStatistics(model), controller
        largest = math.inf if micro_batch_size is None else micro_batch_size * controller.batches_per_step
        self._base = samples_at_once(controller.rules.base_batch_size, largest)

    def __call__(self, cut_size: int | None) -> None:
        """Follow batches that were cut at this size, samples of an optimizer step; None: no batch is under way."""
        controller = self._controller
        if cut_size is None or controller.rules.holds:
            self._statistics.restore()
        else:
            largest = controller.memory.piece * controller.batches_per_step
            self._statistics.follow(samples_at_once(cut_size, largest) / self._base)


def samples_at_once(size: int, largest: float) -> float:
    """Samples of each pass, where batches of `size` samples are cut into equal ones of at most `largest`."""
    return size / max(1, math.ceil(size / largest))

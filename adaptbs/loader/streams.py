"""Notices a loop that trains on another CUDA stream than it is iterated on."""

from __future__ import annotations

from typing import Any

import torch

from ..run import TrainingRun

STREAM = "trained on another CUDA stream"  # reason to hold the batch

WARNING = (
    "the loader is iterated on one CUDA stream and the optimizer is stepped on another. What is measured and timed "
    "between two steps would not wait for the step before, so nothing is measured and the batch is held. Put the whole "
    "loop into `with torch.cuda.stream(stream):`, the iteration over the loader included."
)


class StreamCheck:
    """Compares, once in each iteration on CUDA, the stream that a batch is asked for on with that of its step.

    Steps are timed, and halves measured, on the stream that asks for the next batch. If another one trains, then
    neither is in order with the training step.

    Args:
        run: the training run.

    Attributes:
        asks: True while `delivered` is to be called for the next batch.
        waits: True while `stepped` is to be called at the next step.
    """

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self.asks = self.waits = False
        self._found = False
        self._stream: Any = None

    def begin(self) -> None:
        """An iteration begins."""
        self.asks, self.waits = not self._found and self._run.model_device.type == "cuda", False

    def delivered(self) -> None:
        """The loop asks for a batch on the current stream."""
        self.asks, self.waits = False, True
        self._stream = torch.cuda.current_stream(self._run.model_device)

    def stepped(self) -> None:
        """The optimizer is about to step on the current stream."""
        self.waits = False
        if torch.cuda.current_stream(self._run.model_device) != self._stream:
            self._found = True
            self._run.controller.holds.doubt(STREAM, WARNING)
            self._run.measuring.give_up()
        self._stream = None

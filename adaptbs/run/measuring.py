"""One measurement of a run's batch: as much of it as memory holds, and none where that runs out."""

from __future__ import annotations

import logging
from typing import Any

from ..gradients import NoiseMeter
from ..memory import is_out_of_memory
from ..model import slice_batch
from .controller import Controller

log = logging.getLogger(__name__)


def measure(controller: Controller, measurer: NoiseMeter, batch: Any) -> None:
    """Measure the batch just fetched, and tell the controller. What else goes wrong than memory is raised."""
    said, samples = None, controller.delivery.fetched.length
    if samples > controller.memory.piece:  # (it is trained on in pieces, too)
        samples = int(controller.memory.piece)
        batch = slice_batch(batch, 0, samples)
    try:
        with controller.measuring():
            controller.measured(measurer.measure(batch, samples))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = str(error)
    if said is not None:  # (outside of the except block, which keeps alive what the failed pass holds)
        controller.memory.release()
        log.warning("memory ran out while the noise scale of a batch was measured, which is left out: %s", said)

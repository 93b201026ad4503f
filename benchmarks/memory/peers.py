"""The peers of search.py: their own algorithms, from their own packages, on a simulated device.

Nothing of the algorithms is written here. What surrounds them (trainer, loops, collecting garbage) is replaced by
stubs, as there is no model: running a loop means running steps of the current size on the device.
"""

from __future__ import annotations

import contextlib
import logging
from types import SimpleNamespace
from unittest.mock import patch

import accelerate.utils.memory as of_accelerate
import lightning.pytorch.tuner.batch_size_scaling as of_lightning

from tests.simulated_device import SimulatedDevice

STEPS = 3  # of a trial of Lightning's, its default
FIRST = 2  # Lightning's first size, by default
STARTING = 128  # accelerate's
LARGEST = 1 << 20  # samples of the data set

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def lightning(device: SimulatedDevice, mode: str, max_val: int) -> int:
    """What BatchSizeFinder(mode) returns."""
    module = SimpleNamespace(batch_size=FIRST)
    data = SimpleNamespace(_dataset_length=lambda: LARGEST)
    loop = SimpleNamespace(setup_data=lambda: None, _combined_loader=data)
    trainer = SimpleNamespace(lightning_module=module, _active_loop=loop)

    def run(*_: object) -> None:
        for _ in range(STEPS):
            device.step(module.batch_size)

    surroundings = {
        "_try_loop_run": run, "_reset_progress": lambda *_: None, "_reset_dataloaders": lambda *_: None,
        "garbage_collection_cuda": lambda: None, "rank_zero_info": lambda *_: None,
        "lightning_getattr": getattr, "lightning_setattr": setattr,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        for name, stub in surroundings.items():
            stack.enter_context(patch.object(of_lightning, name, stub))
        common = {"trainer": trainer, "new_size": FIRST, "batch_arg_name": "batch_size", "max_trials": 25, "params": {}}
        if mode == "power":
            return of_lightning._run_power_scaling(**common, max_val=max_val)
        return of_lightning._run_binsearch_scaling(**common, margin=0.05, max_val=max_val)


def accelerate(device: SimulatedDevice, start: int) -> int | None:
    """The size at which a function decorated with find_executable_batch_size gets through."""

    def train(batch_size: int) -> int:
        device.step(batch_size)
        return batch_size

    with patch.object(of_accelerate, "clear_device_cache", lambda **_: None):
        try:
            return of_accelerate.find_executable_batch_size(train, starting_batch_size=start)()
        except RuntimeError as error:
            if "reached zero" not in str(error):
                raise
            return None


PEERS = {
    "Lightning, power": lambda device, start: lightning(device, "power", 8192),
    "Lightning, power, max_val=2^20": lambda device, start: lightning(device, "power", LARGEST),
    "Lightning, binsearch": lambda device, start: lightning(device, "binsearch", 8192),
    "Lightning, binsearch, max_val=2^20": lambda device, start: lightning(device, "binsearch", LARGEST),
    f"accelerate, from {STARTING}": lambda device, start: accelerate(device, STARTING),
    "accelerate, from our start": accelerate,
}

"""The rules that are compared: ways of setting the batch, and the hyperparameters that go with it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from adaptbs.timing.step_time import StepTime
from benchmarks.quality.tasks import BASE, Adams, Task

#: Seconds of a step, modelled: what a GPU's is like while it is not full, and one that is bound by computing.
STEP_TIMES = {"gpu": StepTime(4e-3, 1e-6), "compute": StepTime(0.5e-3, 10e-6)}
SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
OWN_LR_SIZES = (256, 1024)  # these are also given their own best learning rate
MULTIPLIERS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the transferred one


@dataclass(frozen=True)
class Fixed:
    """A batch that stays, with the hyperparameters stated for `BASE` transferred to it, or left as they are."""

    batch_size: int
    lr_multiplier: float = 1.0
    transfer: bool = True
    beta1_power: float = 0.5  # beta1 becomes beta1^(k^this). .5 was the package's rule; 1 keeps the average's samples

    @property
    def name(self) -> str:
        times = f" lr x{self.lr_multiplier:g}" if self.lr_multiplier != 1 else ""
        beta1 = " beta1^k" if self.beta1_power == 1 else ""
        return f"fixed {self.batch_size}{times}{beta1}{'' if self.transfer else ' untransferred'}"

    def hyperparameters(self, task: Task) -> tuple[float, Adams | None]:
        """(learning rate, the rest)."""
        lr, adams = task.lr, task.adams
        if self.transfer:
            lr, adams = transferred(lr, adams, self.batch_size / BASE, self.beta1_power)
        return lr * self.lr_multiplier, adams


def transferred(
    lr: float, adams: Adams | None, k: float, beta1_power: float = 0.5
) -> tuple[float, Adams | None]:
    """The hyperparameters of a batch k times as large, written out here on purpose, apart from the package's own.

    SGD: lr k (Goyal et al. 2017, arXiv:1706.02677). Adam and AdamW: lr sqrt(k), beta2^k, eps/sqrt(k) (after Malladi et
    al. 2022, arXiv:2205.10287, who have 1 - beta -> k (1 - beta)); decoupled decay sqrt(k), which lr multiplies to k.
    beta1^sqrt(k) was the package's rule when the committed runs of fixed batches were made. It stays here, so that new
    runs can stand beside them. The package has beta1^(k^(1/4)) since then (docs/transfer.md says why).
    """
    if adams is None:
        return lr * k, None
    root, (beta1, beta2) = math.sqrt(k), adams.betas
    decay = None if adams.weight_decay is None else adams.weight_decay * root
    betas = (beta1 ** k**beta1_power, beta2**k)
    return lr * root, replace(adams, betas=betas, eps=adams.eps / root, weight_decay=decay)


def seconds_at(model: str, steps: int, samples: int) -> float:
    """Modelled seconds of so many steps over so many samples, nothing else being done."""
    return STEP_TIMES[model].a * steps + STEP_TIMES[model].b * samples

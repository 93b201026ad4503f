"""The run that a stock Trainer would make: its step and epoch after a number of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from ..decision import fixed_batches


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The fixed run, of steps of the starting batch.

    Attributes:
        batch_samples: samples of a batch at the start, over all processes.
        epoch_samples: samples of an epoch.
        epoch_batches: batches of an epoch, as long as the stock loader.
        accumulation_steps: batches of a step.
        max_steps: steps of the run.
    """

    batch_samples: int
    epoch_samples: int
    epoch_batches: int
    accumulation_steps: int
    max_steps: int

    @classmethod
    def of(
        cls, loader: DataLoader[Any], *, batches: int, accumulation_steps: int, world_size: int, max_steps: int
    ) -> Plan:
        """The plan of a run over all processes' data.

        Args:
            loader: loader over all of the data, with the batch size of one process.
            batches: batches of an epoch on each process.
            accumulation_steps, max_steps: attributes of the plan.
            world_size: number of processes.
        """
        batch, n = int(loader.batch_size or 1) * world_size, len(loader.sampler)  # type: ignore[arg-type]
        samples = n - n % batch if loader.drop_last else -(-n // world_size) * world_size
        return cls(
            batch_samples=batch, epoch_samples=samples, epoch_batches=batches,
            accumulation_steps=accumulation_steps, max_steps=max_steps,
        )  # fmt: skip

    def check(self, accumulation_steps: int) -> None:
        """Raise ValueError if the run accumulates other than planned, as by a callback that changes it on the way."""
        if accumulation_steps != self.accumulation_steps:
            raise ValueError(
                f"gradient_accumulation_steps={accumulation_steps}: the run began with {self.accumulation_steps}, by "
                "which its steps are counted. Leave it as it is, for the batch grows by itself (by_accumulation=True: "
                "by accumulation), or train with transformers.Trainer"
            )

    @property
    def ends_with_an_epoch(self) -> bool:
        """True if the run is a whole number of epochs."""
        return self.max_steps % self.epoch_steps == 0

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch. At its end fewer accumulated batches make a step, too."""
        return -(-self.epoch_batches // self.accumulation_steps)

    @property
    def samples(self) -> int:
        """Samples of the run."""
        epochs, steps = divmod(self.max_steps, self.epoch_steps)
        return epochs * self.epoch_samples + steps * self.accumulation_steps * self.batch_samples

    @property
    def epochs(self) -> float:
        """Length of the run, epochs; not a whole number if it ends within an epoch."""
        return self.samples / self.epoch_samples

    def _batches(self, samples: int) -> tuple[int, int]:
        """Whole epochs, and batches of the next epoch, after `samples` samples of the run."""
        batches = fixed_batches(samples, self.batch_samples, self.epoch_samples, self.epoch_batches)
        return divmod(batches, self.epoch_batches)

    def batches_left(self, samples: int) -> int:
        """Batches that an epoch of the fixed run has left after `samples` samples of the run."""
        return self.epoch_batches - self._batches(samples)[1]

    def steps(self, samples: int) -> int:
        """Steps of the fixed run after `samples` samples, at most `max_steps`."""
        epochs, batches = self._batches(samples)
        return min(epochs * self.epoch_steps + batches // self.accumulation_steps, self.max_steps)

    def epoch(self, samples: int) -> float:
        """The fixed run's `state.epoch` after `samples` samples."""
        epochs, batches = self._batches(samples)
        return epochs + batches / self.epoch_batches

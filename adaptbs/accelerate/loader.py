"""The loader that accelerate takes for one that it has prepared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.state import GradientState
from accelerate.utils import ignorant_find_batch_size, send_to_device, synchronize_rng_states
from torch.utils.data import DataLoader

from ..loader import AdaptedLoader, LoopFacts
from ..model import a_few_trained
from ..run import OneAheadOrLook
from .iterations import Iterations

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

END = object()


class AcceleratedLoader(AdaptedLoader):
    """An AdaptiveDataLoader that accelerate treats as its own; see `adaptive`.

    Attributes:
        gradient_state: accelerate's state, which reads `end_of_dataloader` and `remainder`.
    """

    _is_accelerate_prepared = True

    def __init__(
        self,
        accelerator: Accelerator,
        loader: DataLoader[Any],
        *,
        optimizer: AcceleratedOptimizer,
        scheduler: AcceleratedScheduler | LRScheduler | None,
        **arguments: Any,
    ) -> None:
        self.gradient_state = GradientState()
        self._iterations = Iterations(self.gradient_state)
        self._accelerator = accelerator
        ranks, steps = accelerator.num_processes, None
        if isinstance(scheduler, AcceleratedScheduler):
            # For each optimizer step it makes as many steps as a stock loop on one process.
            if scheduler.step_with_optimizer and self.gradient_state.sync_with_dataloader:
                steps = 1 if scheduler.split_batches else ranks
            scheduler = scheduler.scheduler
        # Of a loop that accumulates without `accumulate()` it is not known what it does at an epoch's end.
        by_accelerate = accelerator.gradient_accumulation_steps > 1 and self.gradient_state.sync_with_dataloader
        stepped = optimizer.optimizer

        def one_ahead() -> OneAheadOrLook:
            return OneAheadOrLook(a_few_trained(stepped))

        if accelerator.split_batches:
            arguments = {"batch_size": (loader.batch_size or 0) // ranks, **arguments}
        facts = LoopFacts(
            look_ahead=one_ahead, schedule_steps=steps, rest_makes_a_step=by_accelerate, in_runs=True,
        )  # fmt: skip
        super().__init__(
            facts, loader, optimizer=stepped, scheduler=scheduler,
            **{"accumulation_steps": accelerator.gradient_accumulation_steps, **arguments},
        )  # fmt: skip

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """An epoch's batches, on the accelerator's device."""
        # The loader's own generator is the same on all processes already.
        kinds = [kind for kind in self._accelerator.rng_types or () if getattr(kind, "value", kind) != "generator"]
        if kinds:
            synchronize_rng_states(kinds)
        self.set_epoch(self.epoch)
        return self._one_ahead(super().__iter__())

    @property
    def end_of_dataloader(self) -> bool:
        """True while the loop works on the last batch of an epoch. `accumulate()` steps then."""
        return self._iterations.latest[0]

    @property
    def remainder(self) -> int:
        """At the last batch its samples on all processes without repeated ones, 0 if none was repeated; else -1."""
        return self._iterations.latest[1]

    def _one_ahead(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Fetch each batch before the one before is trained on, as accelerate does, to know which is the last."""
        number = self._iterations.begin(self)
        try:
            batch = next(batches, END)
            while batch is not END:
                following = next(batches, END)
                is_last = following is END
                self._iterations.delivers(number, is_last, self._without_repeated(batch) if is_last else -1)
                yield batch
                batch = following
        finally:
            self._iterations.end(self, number)

    def _fetch(self) -> Iterator[Any]:
        batches, accelerator = super()._fetch(), self._accelerator
        if not accelerator.device_placement:
            return batches
        there, non_blocking = accelerator.device, accelerator.non_blocking
        return (send_to_device(batch, there, non_blocking=non_blocking) for batch in batches)

    def _without_repeated(self, batch: Any) -> int:
        """Samples of the last batch on all processes without repeated ones; 0 if none was repeated, -1 if not known."""
        if not self.repeated_samples:
            return 0
        own = ignorant_find_batch_size(batch)
        return -1 if own is None else own * self._accelerator.num_processes - self.repeated_samples

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch's number on to the sampler and the dataset, if they take it, as a prepared loader does."""
        for each in (self._session.source.order, self.dataset):
            tell = getattr(each, "set_epoch", None)
            if callable(tell):
                tell(epoch)

    @property
    def total_batch_size(self) -> int:
        """Samples of a batch on all processes together."""
        ranks: int = self._accelerator.num_processes
        return self.batch_size * ranks

"""AdaptiveBatchSize: the callback that translates Lightning's events for an adaptive loader.

Tried with lightning 2.6.6, imported as `lightning` and as `pytorch_lightning`. `loop.py` and `validations.py` list the
private names that are relied on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..checks import check_size
from ..model import BatchLoss, Calling
from ..run import RunReport, Settings, TrainingRun, shows_shared_arguments
from .fit import AdaptiveFit
from .loop import LightningLoop
from .randomness import RandomStates, remembering
from .refusals import check

try:  # The same library under two names. A Trainer of either takes a callback of the other.
    from lightning.pytorch import Callback
except ImportError:
    from pytorch_lightning import Callback

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..run import SharedArguments


@partial(shows_shared_arguments, budget="epochs")
class AdaptiveBatchSize(RunReport, Callback):
    """Measures the noise scale while a Trainer fits a module, and grows its training batch toward it.

    Write `Trainer(callbacks=[AdaptiveBatchSize()])`, and `fit(module, loader)` with the stock loader as before. A batch
    stands for the batches of the stock run with as many samples. So `trainer.global_step`, `max_steps`, validations,
    checkpoints, logs and schedules are where they would be without the callback (docs/lightning.md).

    Args:
        loss_func: called as `loss_func(module(*inputs), target)` on a batch `(*inputs, target)`. Needed only for a
            model that cannot be measured in its training step, such as one with BatchNorm. An error says so and names
            the layer.
        batch_loss: called as `batch_loss(module, batch)`, for any other layout; instead of `loss_func`. The batch has
            been through the module's transfer hooks.
        accumulation_steps: batches of an optimizer step in manual optimization. In automatic optimization it is
            `Trainer(accumulate_grad_batches=)`.
        shared arguments: documented by `Settings`.

    Raises:
        ValueError, TypeError, NotImplementedError: if an argument is not valid; when training begins, if the batch
            cannot grow with a loader, strategy or callback.
    """

    def __init__(
        self,
        *,
        loss_func: Callable[..., Tensor] | None = None,
        batch_loss: Callable[[Any, Any], Tensor] | None = None,
        accumulation_steps: int = 1,
        **arguments: Unpack[SharedArguments],
    ) -> None:
        check_size("accumulation_steps", accumulation_steps)
        given: dict[str, Any] = dict(arguments)
        self._arguments = dict(given)
        Settings.taken_from(given)  # raises for a value that cannot be
        if given:
            raise TypeError(f"AdaptiveBatchSize() got an unexpected keyword argument {next(iter(given))!r}")
        if arguments.get("budget") == "progress":
            raise ValueError(
                "budget='progress': a Trainer ends after max_epochs or max_steps. Leave budget= out, and give more "
                "epochs if the larger batches need them"
            )
        if loss_func is not None or batch_loss is not None:
            BatchLoss(loss_func, batch_loss)  # raises where both are given, or no function
        self._loss_func, self._batch_loss, self._accumulation_steps = loss_func, batch_loss, int(accumulation_steps)
        self._seen: dict[int, RandomStates] = {}  # before each loader was first iterated
        self._fit: AdaptiveFit | None = None
        self._earlier: AdaptiveFit | None = None  # the fit before, until the next one trains
        self._resumed: dict[str, Any] | None = None  # to be taken up by the next fit
        self._by_hand: dict[str, Any] | None = None  # the same, as it was before the fit loaded its checkpoint

    @property
    def training_run(self) -> TrainingRun | None:
        """The run of the latest fit, for tools that look inside or simulate; None before the first."""
        return self._fit.loader.training_run if self._fit else None

    @property
    def batch_size(self) -> int | None:
        """The size of the batches that are cut now, samples of each device; None before the first fit."""
        return self._fit.loader.batch_size if self._fit else None

    def state_dict(self) -> dict[str, Any]:
        """State of the latest fit, for `load_state_dict`: numbers, strings, tensors and containers of them."""
        return self._resumed or (self._fit.state_dict() if self._fit else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next fit continue from `state_dict()`."""
        self._resumed = state or None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Copy the random states before Lightning iterates a loader, so that the adaptive one draws the same."""
        if stage == "fit":
            self._fit, self._earlier, self._by_hand = None, self._fit, self._resumed
            self._seen.clear()
            trainer.strategy.process_dataloader = remembering(trainer.strategy.process_dataloader, self._seen)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Put the adaptive loader in the stock one's place."""
        resumed, self._by_hand = self._resumed, None
        self._end_setup(trainer)
        stock = check(trainer, LightningLoop(trainer).stock_loaders)
        arguments = {
            **self._arguments, "loss_func": self._loss_func,
            "batch_loss": self._batch_loss and transferred(trainer, self._batch_loss),
            "autocast": trainer.precision_plugin.forward_context,
        }  # fmt: skip
        self._fit = AdaptiveFit(trainer, stock, self._seen[id(stock)], arguments, self._accumulation_steps)
        self._earlier = None
        self._seen.clear()
        self._fit.enter(resumed)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """The gradients are ready: take in the measurement, if this step is measured."""
        if self._fit is not None:
            self._fit.gradients_are_ready()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the steps of a module in manual optimization, and end the epoch with its last batch."""
        if self._fit is not None:
            self._fit.end_batch()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Pause timing, because a validation is no part of a step."""
        if self._fit is not None:
            self._fit.before_validation()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Continue timing."""
        if self._fit is not None:
            self._fit.after_validation()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """End an epoch that was interrupted."""
        if self._fit is not None:
            self._fit.end_epoch()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Restore the Trainer and the optimizer."""
        if self._fit is not None:
            self._fit.leave()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Restore the Trainer and the optimizer if training fails."""
        self._keep_earlier()
        self._end_setup(trainer)
        if self._fit is not None:
            self._fit.leave()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Restore the strategy after a fit that has trained nothing, as one of a run that was complete."""
        if stage == "fit":
            self._keep_earlier()
            self._end_setup(trainer)

    def _keep_earlier(self) -> None:
        """Keep what the fit before has left, if this one has not trained and its checkpoint has brought no state."""
        if self._fit is None and self._resumed is self._by_hand:
            self._fit = self._earlier
        self._earlier = None

    def _end_setup(self, trainer: Any) -> None:
        """Restore the strategy. Forget what the fit has loaded of a checkpoint: the next may be another run's."""
        if vars(trainer.strategy).pop("process_dataloader", None) is not None:
            self._resumed, self._by_hand = self._by_hand, None


def transferred(trainer: Any, batch_loss: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """The same loss for a batch before Lightning has moved it to the device."""

    def loss(module: Any, batch: Any) -> Tensor:
        return batch_loss(trainer.lightning_module, trainer.strategy.batch_to_device(batch))

    return Calling(loss, batch_loss)

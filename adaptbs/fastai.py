"""fastai: `learn.fit_one_cycle(n, lr, cbs=AdaptiveBatchSize())` and `learn.bs_find()`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from fastai.torch_core import default_device
from torch import Tensor, nn
from torch.utils.data import DataLoader as TorchLoader

from . import finder
from .controller import Controller
from .fastai_batches import AdaptiveBatches, check, epoch_samples
from .finder import BatchSizeSuggestion
from .gradients.batch_loss import BatchLoss
from .gradients.source import BestSource
from .history import History
from .lr_scaling import is_adaptive
from .settings import Settings
from .types import LRRule, NoiseScale, Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["AdaptiveBatchSize", "bs_find"]

log = logging.getLogger(__name__)


class AdaptiveBatchSize(Callback):
    """Measures the noise scale while a Learner trains and grows its training batch toward it.

    A fit starts at `learn.dls.bs`. The learning rate follows the batch, the schedule runs in samples and ends where it
    would have ended, and after the fit the loaders are what they were. The arguments are those of
    `adaptbs.AdaptiveDataLoader`; none is needed.

    Args:
        max_batch_size: never exceeded, samples; an eighth of the training set where None.
        base_batch_size: the size the learning rate is stated for, samples; `dls.bs` where None.
        target: "goodput", "noise_scale", or `(noise_scale, batch_size, progress) -> wanted batch size`.
        lr_scaling: "auto", "linear", "sqrt", "gain", "none", or `(k, noise_scale) -> factor`.
        decide_every: share of the run between two decisions.
        confidence: of the reported interval of the noise scale.
        overhead: share of the run's time that measuring may cost; 0 measures nothing.
        step_time: (a, b), seconds of a step being a + b B; given, no clock is read and a run can be repeated.
    """

    # After ParamScheduler and ProgressCallback (60): their learning rate is the one to scale, their bar to correct.
    order, run_valid = 61, False

    def __init__(
        self,
        *,
        max_batch_size: int | None = None,
        base_batch_size: int | None = None,
        target: str | Target = "goodput",
        lr_scaling: str | LRRule = "auto",
        decide_every: float = 0.05,
        confidence: float = 0.9,
        overhead: float = 0.05,
        step_time: tuple[float, float] | None = None,
    ) -> None:
        self._settings = Settings(
            max_batch_size=max_batch_size,
            base_batch_size=base_batch_size,
            target=target,
            lr_scaling=lr_scaling,
            decide_every=decide_every,
            confidence=confidence,
            overhead=overhead,
            step_time=step_time,
        )
        self._controller: Controller | None = None
        self._source: BestSource | None = None
        self._unscaled: list[float] | None = None
        self._resumed: dict[str, Any] | None = None  # to be taken up by the next fit

    @property
    def batch_size(self) -> int | None:
        """The size of the batches that are cut now, samples; None before the first fit."""
        return self._controller.batch_size if self._controller else None

    @property
    def noise_scale(self) -> NoiseScale | None:
        """The latest estimate; None before the first."""
        return self._controller.noise_scale if self._controller else None

    @property
    def history(self) -> History:
        """One record per decision and per measurement of the latest fit."""
        return self._controller.history if self._controller else History()

    def plot(self) -> Figure:
        """Noise scale with its band, batch size and learning rate factor, against samples."""
        from .plot import plot_history

        return plot_history(self.history)

    def state_dict(self) -> dict[str, Any]:
        """What the decisions of the latest fit depend on: numbers, strings and containers of them."""
        return {"controller": self._controller.state_dict() if self._controller else self._resumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next fit go on from `state_dict()`; it raises ValueError if its loader or batch size differ."""
        self._resumed = state["controller"]

    def __call__(self, event_name: str) -> Any:
        """Handle an event; nothing where there is no method for it: fastai takes long to find out, six times a step."""
        return super().__call__(event_name) if hasattr(type(self), event_name) else None

    def before_fit(self) -> None:
        """Begin a run, unless this is a mock fit (`lr_find`) or no fit at all: validation, too, says before_fit."""
        self.run = not hasattr(self.learn, "lr_finder") and not self.learn.lock.locked()  # which validation holds
        if not self.run:
            return
        dl, model = self.dls.train, self.learn.model
        check(dl)
        if any(type(cb).__name__ == "GradientAccumulation" for cb in self.learn.cbs):
            raise ValueError(
                "GradientAccumulation steps after its own number of samples, so a larger batch would change nothing: "
                "remove it, or train without AdaptiveBatchSize"
            )
        parameter = next((p for p in model.parameters() if p.requires_grad), None)
        if parameter is None:
            raise ValueError("the model has no trainable parameter: unfreeze it, or train without AdaptiveBatchSize")
        self._controller = Controller(
            self._settings,
            batch_size=dl.bs,
            epoch_samples=epoch_samples(dl),
            epochs=self.n_epoch,
            adaptive=_is_adaptive(self.opt),
            device=parameter.device,
        )
        if self._resumed is not None:
            self._controller.load_state_dict(self._resumed)
            self._resumed = None
        self._epoch_steps, self._unscaled = len(dl), None
        loss = BatchLoss(batch_loss=lambda model, batch: _loss(self.learn, model, batch))
        self._source = BestSource(model, loss) if self._settings.overhead else None

    def before_train(self) -> None:
        """Cut this epoch's batches at the size of the moment."""
        self._run.skip_epochs(self.epoch)  # those before `start_epoch`
        self.learn.dl = AdaptiveBatches(self.dl, self._run, self._restore)

    def before_batch(self) -> None:
        """Scale the learning rate to the batch; correct the totals; measure if it is this batch's turn."""
        run = self._run
        factor = run.lr_factor
        if factor != 1:
            self._unscaled = [hyper["lr"] for hyper in self.opt.hypers]
            self.opt.set_hyper("lr", [lr * factor for lr in self._unscaled])
        if run.ever_changed:
            self.learn.n_iter = self.iter + 1 + run.batches_left
            if hasattr(self.learn, "progress") and hasattr(self.learn.progress, "pbar"):
                self.learn.progress.pbar.total = self.learn.n_iter
        self._measure()

    def after_batch(self) -> None:
        """Give the learning rate back, after the Recorder (50) has seen what was used, and place the schedule."""
        self._restore()
        if self._run.ever_changed:
            # Where the fixed run stood after as many samples. While nothing has changed, fastai's own running sum is
            # left alone: it is the same number but for rounding.
            at = self._run.epoch_position
            share = at / (self._run.start * self._epoch_steps) if at < self._run.epoch_samples else 1.0
            self.learn.pct_train = (self.epoch + share) / self.n_epoch

    def after_train(self) -> None:
        """Give the learning rate back where another callback ended the batch's epoch or fit before our turn."""
        self._restore()

    after_epoch = after_fit = after_train

    def _restore(self) -> None:
        if self._unscaled is not None:
            self.opt.set_hyper("lr", self._unscaled)
            self._unscaled = None

    @property
    def _run(self) -> Controller:
        assert self._controller is not None
        return self._controller

    def _measure(self) -> None:
        if self._source is None or not self._run.measure_next():
            return
        try:
            with self._run.measuring():
                self._run.measured(self._source.measure((self.xb, self.yb)))
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            # A Learner may compute its loss with the help of other callbacks; then it cannot be computed apart.
            log.warning("this Learner's loss cannot be measured, so the batch size is held: %s", error)
            self._source = None
            self._run.forget_measurements()


def bs_find(
    self: Any,
    lr: float | None = None,
    num_it: int | None = None,
    n_batch: int = 20,
    beta: float = 0.99,
    show_plot: bool = True,
) -> BatchSizeSuggestion:
    """Find the noise scale of a Learner on its training data, and the batch size to use; `learn.bs_find()`.

    Everything is left as it was, also after Ctrl-C; only that the model lies on the device of `dls` then, as after a
    fit. See `adaptbs.bs_find` for what is measured.

    Args:
        self: the Learner.
        lr: to train with meanwhile, by a copy of the Learner's optimizer; None trains nothing.
        num_it: how many batches; one epoch if None.
        n_batch: batches pooled in one measurement.
        beta: smoothing of tr(Sigma) and |G|^2 from measurement to measurement.
        show_plot: draw noise, scale and their ratio with its band.
    """
    loss = BatchLoss(batch_loss=lambda model, batch: _loss(self, model, batch))
    self.model.to(getattr(self.dls, "device", default_device()))
    with _loader_left_as_found(self.dls.train):
        found = finder.find(
            self.model,
            loss,
            _batches(self),
            (lambda: _optimizer_copy(self, lr)) if lr is not None else None,
            num_it=num_it,
            n_batch=n_batch,
            beta=beta,
            confidence=0.9,
        )
    if show_plot:
        found.plot()
    return found


Learner.bs_find = bs_find


def _is_adaptive(opt: Any) -> bool:
    if isinstance(opt, OptimWrapper):
        return is_adaptive(opt.opt)
    return "sqr_mom" in opt.hypers[-1]  # fastai's name for the decay of Adam's squared gradient


def _loss(learn: Any, model: nn.Module, batch: Any) -> Tensor:
    xb, yb = batch
    return learn.loss_func(model(*xb), *yb)


def _batches(learn: Any) -> Iterator[tuple[Any, Any]]:
    for batch in learn.dls.train:
        n_inp = getattr(learn.dls, "n_inp", 1 if len(batch) == 1 else len(batch) - 1)
        yield batch[:n_inp], batch[n_inp:]


def _optimizer_copy(learn: Any, lr: float) -> Any:
    made = learn.opt if learn.opt is not None else learn.opt_func
    if isinstance(made, OptimWrapper):
        return finder.copy_of(made.opt, lr)
    twin = learn.opt_func(learn.splitter(learn.model), lr=lr)
    if learn.opt is not None:
        twin.load_state_dict(copy.deepcopy(learn.opt.state_dict()))
        twin.set_hyper("lr", lr)
    return twin


@contextmanager
def _loader_left_as_found(dl: Any) -> Iterator[None]:
    attributes = getattr(dl, "__dict__", {})
    found = dict(attributes)  # iterating a fastai DataLoader replaces its generator and leaves an iterator behind
    rng = found.get("rng")
    state = rng.getstate() if rng is not None else None
    try:
        with finder.loader_left_as_found(dl) if isinstance(dl, TorchLoader) else nullcontext():
            yield
    finally:
        attributes.clear()
        attributes.update(found)
        if rng is not None:
            rng.setstate(state)

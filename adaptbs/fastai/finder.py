"""`learn.bs_find()`: runs the finder on a fastai Learner and restores the Learner."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, cast

from fastai.optimizer import OptimWrapper
from fastai.torch_core import default_device
from fastcore.xtras import ReindexCollection
from fastprogress.fastprogress import progress_bar

from ..checks import check_functions, check_lr
from ..finder import BatchSizeSuggestion, copy_of, find_batch_size, samples_of
from ..model import OF_A_LEARNER, BatchLoss, length_of, preserved_loader
from .hyperparameters import is_adaptive
from .learner import as_trained, batch_loss


def bs_find(
    self: Any,
    lr: float | slice | None = None,
    num_it: int | None = None,
    n_batch: int | None = None,
    beta: float = 0.99,
    show_plot: bool = True,
    suggest_funcs: Callable[[BatchSizeSuggestion], float] | Iterable[Callable[[BatchSizeSuggestion], float]] = (),
) -> BatchSizeSuggestion:
    """Find the noise scale of a Learner on its training data, and the batch size to use.

    It is available as `learn.bs_find()`, and `learn.recorder.plot_bs_find()` shows the picture again. The Learner is
    restored, also after Ctrl-C, except that its model then lies on the device of `dls`, as after a fit.
    `adaptbs.bs_find` documents the measurement. The result's `.trade_off()` shows the steps, samples and time of each
    batch size.

    Args:
        self: the Learner.
        lr: learning rate to train with between measurements, by a copy of the Learner's optimizer; a slice gives each
            group its own, as in a fit. None: no training.
        num_it: number of batches. None: one epoch.
        n_batch: batches pooled in one measurement. None: 20, or fewer where there would be less than four measurements.
        beta: smoothing of tr(Sigma) and |G|^2 from measurement to measurement, from 0 (none) to 1 (plain mean).
        show_plot: True draws the noise, the scale and their ratio with its confidence band.
        suggest_funcs: one or more functions of the result, each of which suggests one more batch size. Its suggestion
            is marked in the picture and listed in `.suggestions` under the function's name.

    Returns:
        The noise scale with its interval, and batch sizes by noise, time and memory.

    Raises:
        ValueError, TypeError: as by `adaptbs.bs_find`.
    """
    for rate in (lr.start, lr.stop) if isinstance(lr, slice) else (lr,):
        if rate is not None:
            check_lr(rate)
    functions = [suggest_funcs] if callable(suggest_funcs) else list(suggest_funcs)
    check_functions("suggest_funcs", functions)
    loss = BatchLoss(batch_loss=batch_loss(self), called=OF_A_LEARNER)
    self.model.to(getattr(self.dls, "device", default_device()))
    with _preserved_loader(self.dls.train):
        found = find_batch_size(
            self.model,
            loss,
            _batches(self, num_it),
            lambda lr: _optimizer_copy(self, lr),
            lr=cast(Any, lr),  # only the optimizer reads it
            num_it=num_it,
            n_batch=n_batch,
            beta=beta,
            confidence=0.9,
            adaptive=is_adaptive(_optimizer_copy(self, 0.0)),
            samples_of_batch=samples_of(self.dls.train, "bs"),
            batches=length_of(self.dls.train),
        )
    found = found.suggested_by(*functions)
    if hasattr(self, "recorder"):
        self.recorder.bs_found = found
    if show_plot:
        found.plot()
    return found


def _batches(learn: Any, num_it: int | None) -> Iterator[tuple[Any, Any]]:
    batches: Iterable[Any] = learn.dls.train
    if hasattr(learn, "progress"):  # absent within `no_bar`
        total = len(learn.dls.train) if num_it is None else min(num_it, len(learn.dls.train))
        batches = progress_bar(islice(batches, num_it), total=total, leave=False)
    for batch in batches:
        n_inp = getattr(learn.dls, "n_inp", 1 if len(batch) == 1 else len(batch) - 1)
        yield as_trained(learn, batch[:n_inp]), as_trained(learn, batch[n_inp:])


def _optimizer_copy(learn: Any, lr: float | slice) -> Any:
    made = learn.opt if learn.opt is not None else learn.opt_func
    if isinstance(made, OptimWrapper):
        twin = OptimWrapper(opt=copy_of(made.opt, 0.0))
    elif learn.opt is None:
        twin = learn.opt_func(learn.splitter(learn.model), lr=0.0)
    else:  # its own groups, because the splitter may leave out what is frozen just now
        twin = learn.opt_func([list(group) for group in learn.opt.param_lists], lr=0.0)
        twin.load_state_dict(copy.deepcopy(learn.opt.state_dict()))
    twin.set_hyper("lr", lr)
    return twin.opt if isinstance(twin, OptimWrapper) else twin


@contextmanager
def _preserved_loader(dl: Any) -> Iterator[None]:
    attributes = getattr(dl, "__dict__", {})
    found = dict(attributes)  # iterating a fastai DataLoader replaces its generator and adds an iterator
    rng = found.get("rng")
    state = rng.getstate() if rng is not None else None
    # A language model's loader shuffles its texts in place.
    orders = [(each.idxs, list(each.idxs)) for each in found.values() if isinstance(each, ReindexCollection)]
    try:
        with preserved_loader(dl):
            yield
    finally:
        attributes.clear()
        attributes.update(found)
        for order, saved in orders:
            for place, index in enumerate(saved):
                order[place] = index
        if rng is not None:
            rng.setstate(state)

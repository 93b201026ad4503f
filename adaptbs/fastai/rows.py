"""Notices loaders and models where the rows of a larger batch would not be its samples."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from ..model import collates_all, preserved
from ..run import ROWS, Holds
from .learner import RESETTER, is_language_model, owner_of

log = logging.getLogger(__name__)

CLASSIFIER = "SentenceEncoder"  # the part of a text classifier that resets the model itself

FIXED_ROWS = "rows go on in the next batch"  # reason to hold the batch of a model with a state
STATE = (
    "the model has a state that goes on from batch to batch (ModelResetter), of dls.bs rows, so the batch is held. "
    "With fastai's LMDataLoader it would grow in pieces of so many rows. A model without such a state needs no "
    "ModelResetter. overhead=0 holds the batch without this warning."
)

LOST = (
    "create_batch of dls.train, a %s, makes no more of two samples than of one, as where its dataset cuts a batch of "
    "dls.bs itself. A larger batch would lose the samples beyond, so the batch is held. Let create_batch make a row of "
    "each index or item that it is given."
)
# Methods of a loader that make one batch of its items.
MAKES_A_BATCH = ("do_batch", "before_batch", "create_batch")


def doubt_rows(learn: Any, dl: Any, holds: Holds) -> None:
    """Hold the batch if the rows of a larger one would not be its samples. Else remove a hold for that reason."""
    for reason in (FIXED_ROWS, ROWS):  # a resumed run may have another loader
        holds.remove(reason)
    if has_fixed_rows(learn, dl):
        holds.doubt(FIXED_ROWS, STATE)
    if _loses_samples(dl, learn.model):
        holds.doubt(ROWS, LOST, type(dl).__name__)


def has_fixed_rows(learn: Any, dl: Any) -> bool:
    """True if the model has a state that goes on from batch to batch, of which the loader knows nothing.

    It is ModelResetter that shows it. A text classifier has one too, but is reset within each batch.
    """
    resets = any(type(cb).__name__ == RESETTER for cb in learn.cbs)
    if not resets or is_language_model(dl):
        return False
    return not any(type(module).__name__ == CLASSIFIER for module in learn.model.modules())


def _loses_samples(dl: Any, model: nn.Module) -> bool:
    """True if a larger batch of this loader would lose samples, because they are not what it makes its rows of.

    A class of the user's is tried on one item twice. The random states are restored after that.
    """
    if all(_is_fastais(dl, method) for method in MAKES_A_BATCH):
        return False
    try:
        with preserved(model):
            return collates_all(dl.do_batch, dl.do_item(0)) is False
    except Exception as error:  # the user's own code, which may refuse an item that comes twice
        log.info("dls.train does not take an item twice, so whether rows follow samples is not known: %s", error)
        return False


def _is_fastais(dl: Any, method: str) -> bool:
    """True if the loader has this method from one of fastai's classes."""
    given = vars(dl).get(method)
    is_given = given is not None and type(given).__name__ != "Pipeline"
    return not is_given and owner_of(dl, method).__module__.startswith("fastai.")

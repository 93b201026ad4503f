"""The user's model and batch: slice batches, compute the loss, and restore all state afterwards."""

from .batch_loss import BatchLoss, LossNotScalarError, summing
from .batches import batch_bytes, batch_length, concat_batches, describe_batch, repeat_batch, slice_batch
from .devices import with_index
from .modules import has_batch_norm, trainable, without_chance
from .preserve import (
    Snapshot,
    WeightSnapshot,
    add_note,
    preserved,
    preserved_grads,
    preserved_loader,
    preserved_weights,
)
from .samples import collates_all, has_a_row_a_sample, takes_one_apart

__all__ = [
    "BatchLoss",
    "LossNotScalarError",
    "Snapshot",
    "WeightSnapshot",
    "add_note",
    "batch_bytes",
    "batch_length",
    "collates_all",
    "concat_batches",
    "describe_batch",
    "has_a_row_a_sample",
    "has_batch_norm",
    "preserved",
    "preserved_grads",
    "preserved_loader",
    "preserved_weights",
    "repeat_batch",
    "slice_batch",
    "summing",
    "takes_one_apart",
    "trainable",
    "with_index",
    "without_chance",
]

"""The user's model and batch, and leaving both as they were."""

from .batch_loss import BatchLoss, summing
from .batches import batch_bytes, batch_length, concat_batches, repeat_batch, slice_batch
from .modules import has_batch_norm, trainable, without_chance
from .preserve import (
    Before,
    Values,
    add_note,
    grads_left_as_found,
    left_as_found,
    loader_left_as_found,
    weights_left_as_found,
)

__all__ = [
    "BatchLoss",
    "Before",
    "Values",
    "add_note",
    "batch_bytes",
    "batch_length",
    "concat_batches",
    "grads_left_as_found",
    "has_batch_norm",
    "left_as_found",
    "loader_left_as_found",
    "repeat_batch",
    "slice_batch",
    "summing",
    "trainable",
    "weights_left_as_found",
    "without_chance",
]

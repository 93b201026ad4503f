"""The user's model and batch: slice batches, compute the loss, and restore all state afterwards."""

from .attributes import AttributeCopies
from .batch_loss import (
    NO_GRADIENT,
    OF_A_LEARNER,
    OF_A_TRAINER,
    BatchLoss,
    LossNotScalarError,
    summing,
    weight_of_targets,
)
from .batches import batch_bytes, batch_length, concat_batches, describe_batch, slice_batch
from .devices import draws, random_state, set_random_state, with_index
from .loaders import length_of, preserved_loader
from .modules import (
    CachedFact,
    has_batch_norm,
    has_compiled,
    has_static_shapes,
    in_training,
    is_compiled,
    trainable,
    without_chance,
)
from .optimizers import TrainedParameters, parameters_of, without_hooks
from .preserve import (
    RandomStates,
    Snapshot,
    WeightSnapshot,
    add_note,
    preserved,
    preserved_grads,
    preserved_weights,
)
from .samples import collates_all, has_a_row_a_sample, takes_one_apart
from .split import ADVICE, NotCutError, Split, certain_repeat, certain_split, check_certain, why_not_cut
from .variables import Calling
from .watched_parameters import a_few_of, a_few_others, a_few_trained, group_sizes

__all__ = [
    "ADVICE",
    "NO_GRADIENT",
    "OF_A_LEARNER",
    "OF_A_TRAINER",
    "AttributeCopies",
    "BatchLoss",
    "CachedFact",
    "Calling",
    "LossNotScalarError",
    "NotCutError",
    "RandomStates",
    "Snapshot",
    "Split",
    "TrainedParameters",
    "WeightSnapshot",
    "a_few_of",
    "a_few_others",
    "a_few_trained",
    "add_note",
    "batch_bytes",
    "batch_length",
    "certain_repeat",
    "certain_split",
    "check_certain",
    "collates_all",
    "concat_batches",
    "describe_batch",
    "draws",
    "group_sizes",
    "has_a_row_a_sample",
    "has_batch_norm",
    "has_compiled",
    "has_static_shapes",
    "in_training",
    "is_compiled",
    "length_of",
    "parameters_of",
    "preserved",
    "preserved_grads",
    "preserved_loader",
    "preserved_weights",
    "random_state",
    "set_random_state",
    "slice_batch",
    "summing",
    "takes_one_apart",
    "trainable",
    "weight_of_targets",
    "why_not_cut",
    "with_index",
    "without_chance",
    "without_hooks",
]

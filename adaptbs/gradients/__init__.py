"""From autograd to `SquaredNorms`: one file a source."""

from .batch_loss import BatchLoss, summing
from .batches import batch_bytes, batch_length, concat_batches, repeat_batch, slice_batch
from .coupling import FEWEST, Coupling
from .mean_gradient import MeanGradient, has_batch_norm, shows_a_sum, squared_norm, trainable
from .measurer import FEW, Measurer
from .micro_batches import GradientPool
from .per_example import Unsupported
from .ranks import RankGradients, waits_for_nobody
from .views import views_of

__all__ = [
    "FEW",
    "FEWEST",
    "BatchLoss",
    "Coupling",
    "GradientPool",
    "MeanGradient",
    "Measurer",
    "RankGradients",
    "Unsupported",
    "batch_bytes",
    "batch_length",
    "concat_batches",
    "has_batch_norm",
    "repeat_batch",
    "shows_a_sum",
    "slice_batch",
    "squared_norm",
    "summing",
    "trainable",
    "views_of",
    "waits_for_nobody",
]

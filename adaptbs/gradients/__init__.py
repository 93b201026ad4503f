"""Measure squared gradient norms through autograd: in the training step, by halves, or from ranks."""

from .accumulated import AccumulatedGradients
from .coupling import FEWEST_EXAMINED, Coupling
from .fsdp import ShardedGradients, is_sharded, why_shards_are_unseen
from .halves import GradientPool
from .layers import owned, why_loss_is_needed, why_no_terms
from .mean_gradient import MeanGradient, shows_a_sum, squared_norm
from .meter import FEW_FOR_BATCH_NORM, HALVES, IN_STEP, NoiseMeter
from .ranks import RankGradients, waits_for_nobody
from .rows_seen import is_far
from .terms import Unsupported
from .views import views_of

__all__ = [
    "FEWEST_EXAMINED",
    "FEW_FOR_BATCH_NORM",
    "HALVES",
    "IN_STEP",
    "AccumulatedGradients",
    "Coupling",
    "GradientPool",
    "MeanGradient",
    "NoiseMeter",
    "RankGradients",
    "ShardedGradients",
    "Unsupported",
    "is_far",
    "is_sharded",
    "owned",
    "shows_a_sum",
    "squared_norm",
    "views_of",
    "waits_for_nobody",
    "why_loss_is_needed",
    "why_no_terms",
    "why_shards_are_unseen",
]

"""From autograd to `SquaredNorms`: one file a source."""

from .coupling import FEWEST, Coupling
from .mean_gradient import MeanGradient, shows_a_sum, squared_norm
from .measurer import FEW, Measurer
from .micro_batches import GradientPool
from .per_example import Unsupported
from .ranks import RankGradients, waits_for_nobody
from .views import views_of

__all__ = [
    "FEW",
    "FEWEST",
    "Coupling",
    "GradientPool",
    "MeanGradient",
    "Measurer",
    "RankGradients",
    "Unsupported",
    "shows_a_sum",
    "squared_norm",
    "views_of",
    "waits_for_nobody",
]

"""The rules: what becomes of each hyperparameter at k times the base batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from torch import Tensor

from benchmarks.quality.transfer_grid.optimizers import Step, adamw, lion, sgd

STAYS = "stays"
PHI = "(1+cφ/B0)/(1+cφ/B), c = "
ROOT = "root of " + PHI
FLOOR = 0.9  # beneath which a rule that says so does not take beta2
# Exponents of k, and forms that saturate with phi = B_simple as it is measured at this point of the run.
POWERS = {STAYS: 0.0, "k^.25": 0.25, "√k": 0.5, "k^.75": 0.75, "k": 1.0}
FORMS = (STAYS, "k^.25", "√k", "k", PHI + "1", PHI + "4", ROOT + "1", ROOT + "4")
FORMS_SGD = (*POWERS, *(f"{PHI}{c:g}" for c in (0.25, 1, 2, 4, 16)), ROOT + "1", ROOT + "4")
TO_SQRT, TO_K, TO_K_FLOOR = "^√k", "^k", f"^k, at least {FLOOR:g}"
KEPT = ", lr/(1-β1) kept"
PER_SAMPLE, PER_ROOT = "per sample", "/√k"


@dataclass(frozen=True)
class Rule:
    """What is done to each hyperparameter. `beta1` is SGD's momentum."""

    lr: str = STAYS
    beta1: str = STAYS
    beta2: str = STAYS
    eps: str = STAYS
    weight_decay: str = STAYS

    def __str__(self) -> str:
        parts = (("lr", self.lr), ("β1", self.beta1), ("β2", self.beta2), ("eps", self.eps), ("wd", self.weight_decay))
        return "; ".join(f"{name} {what}" for name, what in parts)


NONE = Rule()


def lr_factor(form: str, k: float, phi: Tensor, base_batch: int) -> Tensor:
    """The factor of the learning rate.

    Args:
        form: the rule's `lr`.
        k: batch / base batch.
        phi: B_simple at each step, samples, any shape.
        base_batch: B0, samples.
    """
    if form in POWERS:
        return phi.new_full(phi.shape, k ** POWERS[form])
    critical = float(form.rpartition(" = ")[2]) * phi
    gain = (1 + critical / base_batch) / (1 + critical / (k * base_batch))
    return gain.sqrt() if form.startswith(ROOT) else gain


def decayed(beta: float, form: str, k: float) -> float:
    """beta1 or beta2 at k."""
    form = form.removesuffix(KEPT)
    if form == STAYS:
        return beta
    raised = float(beta ** (math.sqrt(k) if form == TO_SQRT else k))
    return max(raised, min(beta, FLOOR)) if form == TO_K_FLOOR else raised


@dataclass(frozen=True)
class Kind:
    """An optimizer with its hyperparameters at the base batch, the rules tried on it, and which one is ours.

    Attributes:
        rates, decays: learning rates and weight decays, of which the pair is taken that is best at the base batch.
    """

    name: str
    step: Step
    betas: tuple[float, float]
    rates: tuple[float, ...]
    decays: tuple[float, ...]
    default: Rule
    rules: tuple[Rule, ...]


def _rates(middle: float) -> tuple[float, ...]:
    return tuple(middle * 2.0**i for i in range(-2, 4))


def _grid(
    default: Rule,
    forms: Sequence[str],
    *,
    beta1: Sequence[str],
    beta2: Sequence[str] = (STAYS,),
    weight_decay: Sequence[str] = (STAYS, PER_SAMPLE),
) -> tuple[Rule, ...]:
    """All combinations, and the default with an eps that stays: eps is too small to be worth a factor of its own."""
    lists = product(forms, beta1, beta2, weight_decay)
    made = [Rule(lr, first, second, default.eps, decay) for lr, first, second, decay in lists]
    made += [replace(default, lr=lr, eps=STAYS) for lr in forms]
    return tuple(dict.fromkeys(NONE if replace(rule, eps=STAYS) == NONE else rule for rule in made))


ADAMS = Rule("√k", TO_SQRT, TO_K, PER_ROOT, PER_SAMPLE)
LIONS = replace(ADAMS, eps=STAYS)
SGDS = Rule(PHI + "4")
MOMENTA = (STAYS, TO_SQRT, TO_K, TO_SQRT + KEPT, TO_K + KEPT)
DECAYS = (STAYS, TO_SQRT, TO_K)
WEIGHT_DECAYS = (0.01, 0.03, 0.1, 0.3)
KINDS = (
    Kind("SGD (.9)", sgd, (0.9, 0.0), _rates(0.04), (5e-4, 5e-3), SGDS,
         _grid(SGDS, FORMS_SGD, beta1=MOMENTA, weight_decay=(STAYS,))),
    Kind("AdamW (.9, .999)", adamw, (0.9, 0.999), _rates(8e-3), WEIGHT_DECAYS, ADAMS,
         _grid(ADAMS, FORMS, beta1=DECAYS, beta2=DECAYS)),
    Kind("AdamW (.9, .95)", adamw, (0.9, 0.95), _rates(8e-3), WEIGHT_DECAYS, ADAMS,
         _grid(ADAMS, FORMS, beta1=DECAYS, beta2=(*DECAYS, TO_K_FLOOR))),
    Kind("Lion (.9, .99)", lion, (0.9, 0.99), _rates(2e-3), WEIGHT_DECAYS, LIONS,
         _grid(LIONS, FORMS, beta1=DECAYS, beta2=DECAYS)),
)  # fmt: skip

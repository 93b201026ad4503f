"""Finds out how an optimizer uses its hyperparameters: by the names in its groups, by its state, and by its steps.

An optimizer of the same class and settings takes a few steps on a small weight of its own. The state that it then has
says which averages it keeps; the steps say whether they depend on the gradient's size, how the averages are corrected
for their bias, and how weights are decayed. The user's optimizer, weights and random states do not notice.

Whatever has no meaning here (a third beta, another number among the hyperparameters, a second state) makes the
optimizer unknown, for it may count steps in a way of its own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..model import draws
from .traits import ADAM, LR_ONLY, MUON, UNKNOWN, OptimizerTraits

if TYPE_CHECKING:
    from torch.optim import Optimizer

log = logging.getLogger(__name__)

HYPERPARAMETERS = frozenset({"lr", "betas", "beta1", "beta2", "momentum", "eps", "weight_decay"})
# Numbers beside them that do not depend on the size of a batch, or that count steps and are left as they are.
NUMBERS = frozenset({
    "step", "dampening", "ns_steps", "ns_coefficients", "ns_coeffs", "ns_reset_steps",
    "precondition_frequency", "max_precondition_dim",  # SOAP
    "d", "d0", "d_max", "d_coef", "d_numerator", "growth_rate", "slice_p",  # Prodigy
})  # fmt: skip
# What a group has beside its settings: its weights, what schedulers remember in it, and its count of steps.
NO_SETTINGS = frozenset(
    {"params", "param_names", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "step"}
)
# State as large as the weight that is no average: the largest value so far, Prodigy's own.
BESIDE = frozenset({"max_exp_avg_sq", "s", "p0"})
SCHEDULE_FREE = frozenset({"r", "weight_lr_power", "weight_sum", "lr_max"})

LR, BETAS, EPS, WARM_UP = 0.01, (0.9, 0.99), 1e-4, 20  # of the trial; the last is the steps before the last one
POWERS = math.sqrt(8), 8.0  # of its betas in the last step
TOLERANCE = 0.03  # of a ratio of steps, whose values to be told apart are 0, 1, 2 and 8
CLOSE = 0.006  # of the ratio that shows the bias correction; the nearest two expected lie .018 apart
FEW = 4  # steps that show the size of a step


def recognise(optimizer: Optimizer, group: Mapping[str, Any]) -> OptimizerTraits:
    """The traits of one parameter group of an optimizer; UNKNOWN where they cannot be told for certain."""
    trial = Trial(type(optimizer), optimizer.defaults, group)
    numbers = {name for name, value in trial.settings.items() if value and _is_numeric(value)}
    if trial.settings.keys() >= SCHEDULE_FREE:
        numbers -= SCHEDULE_FREE | {"warmup_steps"}  # longer in samples where the batch grows in it, which is safe
    if numbers - HYPERPARAMETERS - NUMBERS:
        return UNKNOWN
    try:
        return _recognised(trial)
    except Exception as error:
        # Some want a closure, other shapes, or names: whatever goes wrong, nothing is known of them.
        log.debug("a trial of %s failed: %s: %s", type(optimizer).__name__, type(error).__name__, error)
        return UNKNOWN


def _recognised(trial: Trial) -> OptimizerTraits:
    plain = trial.run(FEW)
    if trial.settings.keys() >= SCHEDULE_FREE:
        return _schedule_free(trial, plain)
    growth = _ratio(trial.run(FEW, gradient=8.0).moved, plain.moved)
    averages = plain.state - BESIDE
    if _near(growth, 8.0):
        # The step is as long as the gradient: SGD, whose momentum sums over steps and stays.
        settled = len(averages) <= 1 and not {"betas", "beta1"} & trial.settings.keys()
        return replace(LR_ONLY, adaptive=False) if settled else UNKNOWN
    doubled = trial.run(FEW, last={"lr": 2 * LR})
    if not _near(growth, 1.0) or not _near(_ratio(doubled.moved, plain.moved), 2.0):
        return UNKNOWN
    decay = trial.run(FEW, weight_decay=0.1).decayed(plain, 0.1)
    decoupled = _near(decay, 1.0)
    if not decoupled and abs(decay) > TOLERANCE:
        return UNKNOWN
    betas, eps = _betas(trial.settings), trial.settings.get("eps")
    if len(averages) == 2 and betas and isinstance(eps, Real):
        traits = _debiased(trial)
    elif len(averages) == 1 and betas and not eps:
        traits = replace(ADAM, eps=False, debiases_first=False, debiases_second=False)  # Lion
    elif len(averages) == 1 and "momentum" in trial.settings and not betas:
        traits = MUON
    else:
        return UNKNOWN
    return replace(traits, decoupled=decoupled, compiled=plain.tensor_lr) if traits.known else UNKNOWN


def _schedule_free(trial: Trial, plain: Run) -> OptimizerTraits:
    """AdamWScheduleFree: beta1 is a share between two points and no decay, and its weights go by the square of lr."""
    if plain.state != {"z", "exp_avg_sq"} or trial.settings.get("silent_sgd_phase") is not None or plain.steps is None:
        return UNKNOWN
    # A step takes lr wd off one of the two points, and the weights follow it part of the way.
    decoupled = trial.run(FEW, weight_decay=0.1).decayed(plain, 0.1) > TOLERANCE
    return replace(ADAM, first=False, debiases_first=False, decoupled=decoupled)


def _debiased(trial: Trial) -> OptimizerTraits:
    """Adam's traits with the bias corrections that the optimizer makes, told by a step after a change of the betas.

    Under a constant gradient the averages m and v hold the masses 1 - beta^t, with t the power of all decays so far.
    Adam divides by 1 - (beta^p)^t, with the power p of today.
    """
    plain, changed = trial.run(WARM_UP), trial.run(WARM_UP + 1, last=_raised(trial.settings))
    found = _ratio(changed.moved, plain.moved)
    (m, m_new, m_taken), (v, v_new, v_taken) = (
        (1 - b**WARM_UP, 1 - b ** (WARM_UP + p), 1 - b ** (p * (WARM_UP + 1)))
        for b, p in zip(BETAS, POWERS, strict=True)
    )
    first, second = {True: m_new / m_taken, False: m_new / m}, {True: v_new / v_taken, False: v_new / v}
    expected = {(a, b): first[a] / math.sqrt(second[b]) for a in first for b in second}
    # A step of a size of its own (LAMB), or averages that are never biased, need no correction either.
    corrections = [key for key, ratio in expected.items() if _near(found, ratio, CLOSE)]
    corrections += [(False, False)] * _near(found, 1.0, CLOSE)
    if not corrections or (any(corrections[0]) and plain.steps is None):
        return UNKNOWN
    debiases_first, debiases_second = corrections[0]
    return replace(ADAM, debiases_first=debiases_first, debiases_second=debiases_second)


@dataclass(frozen=True)
class Run:
    """Steps on the trial's weight.

    Attributes:
        weight: after them.
        moved: what the last of them added to the weight.
        state: names of the state that is as large as the weight.
        steps: the optimizer's own count; None where it keeps none.
        tensor_lr: True if the class has made a tensor of the learning rate.
    """

    weight: Tensor
    moved: Tensor
    state: frozenset[str]
    steps: int | None
    tensor_lr: bool

    def decayed(self, plain: Run, weight_decay: float) -> float:
        """Weight that the last step took off, over lr wd w; `plain` has made the same steps without a decay."""
        return float(((plain.moved - self.moved) / (LR * weight_decay * self.weight)).median())


class Trial:
    """Steps of an optimizer of the same class and settings on a small weight, at hyperparameters of our own.

    Args:
        kind: the class.
        defaults: the optimizer's.
        group: the parameter group whose settings it has.
    """

    def __init__(self, kind: type[Optimizer], defaults: Mapping[str, Any], group: Mapping[str, Any]) -> None:
        parameter = next(iter(group["params"]), None)
        self._device = parameter.device if parameter is not None and not parameter.is_meta else "cpu"
        self._make: Callable[..., Any] = kind
        own = {name: value for name, value in group.items() if name not in NO_SETTINGS}
        self._has_defaults = "lr" in defaults  # else each group has its own
        if self._has_defaults:
            # The numbers are the defaults', because counters begin anew.
            own = {name: value for name, value in own.items() if isinstance(value, (bool, str))}
        self.settings = {**defaults, **own}

    def run(self, steps: int, *, gradient: float = 1.0, weight_decay: float = 0.0, last: Any = None) -> Run:
        """Take so many steps from the same weight under the same gradient, the last at the hyperparameters `last`."""
        generator = torch.Generator(device="cpu").manual_seed(0)
        start = torch.rand(2, 8, 8, generator=generator, device="cpu", dtype=torch.float32)  # whatever the defaults are
        parameter = nn.Parameter((1 + start[0]).to(self._device))
        # Of one sign, and never smaller than a weight decay in the gradient.
        parameter.grad = (gradient * (1 + start[1])).to(self._device)
        given = {"lr": LR} if self._has_defaults else {}  # some have no default for it
        optimizer = self._make([{**self._set(weight_decay), "params": [parameter]}], **given)
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()  # Schedule-Free
        before = parameter.detach().clone()
        own = [parameter.device] if draws(parameter.device) else []
        kind = parameter.device.type if own else "cuda"
        with torch.random.fork_rng(own, device_type=kind), torch.compiler.set_stance("force_eager"):
            for step in range(steps):
                if step == steps - 1:
                    for name, value in (last or {}).items():
                        group = optimizer.param_groups[0]
                        group[name] = group[name] * 0 + value if isinstance(group[name], Tensor) else value
                before = parameter.detach().clone()
                parameter.grad = (gradient * (1 + start[1])).to(self._device)
                optimizer.step()
        state = optimizer.state[parameter]
        names = (n for n, v in state.items() if isinstance(v, Tensor) and v.numel() == parameter.numel())
        count = state.get("step", optimizer.param_groups[0].get("step", optimizer.param_groups[0].get("k")))
        now = parameter.detach().clone()
        tensor_lr = isinstance(optimizer.param_groups[0]["lr"], Tensor)
        return Run(now, now - before, frozenset(names), None if count is None else int(count), tensor_lr)

    def _set(self, weight_decay: float) -> dict[str, Any]:
        chosen: dict[str, Any] = {"lr": LR, "weight_decay": weight_decay, "momentum": BETAS[0], "growth_rate": 1.0}
        chosen |= {"betas": BETAS, "beta1": BETAS[0], "beta2": BETAS[1]}
        chosen |= {"d": 1.0, "d0": 1.0, "d_max": 1.0}  # Prodigy's own learning rate, which is not to grow meanwhile
        if isinstance(self.settings.get("eps"), float) and self.settings["eps"]:
            chosen["eps"] = EPS
        return {**deepcopy(self.settings), **{name: chosen[name] for name in chosen if name in self.settings}}


def _raised(settings: Mapping[str, Any]) -> dict[str, Any]:
    raised = tuple(beta**power for beta, power in zip(BETAS, POWERS, strict=True))
    return {"betas": raised} if "betas" in settings else {"beta1": raised[0], "beta2": raised[1]}


def _betas(settings: Mapping[str, Any]) -> bool:
    """True if there are two betas and no more."""
    if "betas" in settings:
        return len(settings["betas"]) == 2
    return "beta1" in settings and "beta2" in settings


def _is_numeric(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_is_numeric(item) for item in value)
    return isinstance(value, (Real, Tensor)) and not isinstance(value, bool)


def _ratio(one: Tensor, other: Tensor) -> float:
    return float(one.norm() / other.norm())


def _near(found: float, expected: float, tolerance: float = TOLERANCE) -> bool:
    return abs(found / expected - 1) <= tolerance

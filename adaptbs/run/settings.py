"""The keyword arguments that every face shares: declared, documented and checked once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from ..checks import check_choice, check_share, check_size
from ..decision import TARGETS
from ..gradients import HALVES, IN_STEP
from ..hyperparameters import LR_SCALINGS, following
from ..model import Split
from ..timing import StepTime
from ..types import LogFunction, LRRule, NoiseScale, Prior, Target

if TYPE_CHECKING:
    from typing_extensions import Self

SIZES = ("max_batch_size", "base_batch_size")
SOURCES = ("auto", "in_step", "halves")
METRICS = ("plain", "adam")
BUDGETS = ("progress", "epochs")
OVERHEADS = {IN_STEP: 0.02, HALVES: 0.05}  # share of the run's time, by how it is measured

T = TypeVar("T", bound=type)

# In the docstring of a face; the arguments take its place. Tools that only read the source show the line.
SHARED_LINE = "        shared arguments: documented by `Settings`."


class SharedArguments(TypedDict, total=False):
    """The names and types of the shared arguments, for type checkers and editors. `Settings` documents them."""

    max_batch_size: int | None
    base_batch_size: int | None
    target: str | Target
    lr_scaling: str | LRRule
    transfer: Collection[str] | None
    budget: str
    max_extra: float
    exceed_memory: bool
    decide_every: float
    confidence: float
    overhead: float | None
    step_time: tuple[float, float] | None
    source: str
    metric: str
    by_group: bool
    log: LogFunction | None
    split: Split | None
    prior: Prior | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The shared arguments, checked.

    Args:
        max_batch_size: never exceeded, samples of a batch as it is delivered. That of the start keeps the batch. A
            step has never more than the dataset. None: a step has at most an eighth of the dataset, and at most 32
            times the base batch, of which 64 count, or 8 times it where that is more.
        base_batch_size: the batch size that the hyperparameters are stated for, samples of an optimizer step. None: the
            size that the run starts with.
        target: "goodput" (most progress per second), "noise_scale", or a function
            `(noise_scale, batch_size, progress) -> wanted batch size`.
        lr_scaling: "auto" (k for SGD, sqrt(k) for Adam and its kin, up to the critical batch size), "linear", "sqrt",
            "gain", "none", or a function `(k, noise_scale) -> factor`.
        transfer: the hyperparameters that follow the batch, out of "lr", "betas" (all that averages over steps: beta1
            and beta2, fastai's mom and sqr_mom, and BatchNorm's momentum), "eps" and "weight_decay". None: all of them
            with `lr_scaling="auto"`, else "lr" only; an optimizer that is not known then keeps its batch too.
            docs/transfer.md says which are known, and what each becomes.
        budget: "progress": the run ends when it has come as far as its epochs would have with a small batch, in fewer
            steps and rather more samples. Each epoch is an equal share of that, which may take more than one pass over
            the data. "epochs": each epoch is one pass. In a plain loop over the loader, too, it is.
        max_extra: samples beyond the plan that a budget of progress may take, as a share of the planned ones.
        exceed_memory: let the batch grow past what memory holds, and run it in pieces (the loader: by `step`). On one
            device that saves no time.
        decide_every: share of the run between two decisions.
        confidence: confidence of the reported interval of the noise scale.
        overhead: share of the run's time, as it would be at the first batch size, that measuring may cost; 0 measures
            nothing. None: 0.02 for a model that is measured in its step, 0.05 for one that is measured by halves, which
            cost more. A short run makes 28 measurements all the same, or one in 8 of its steps at the first batch size,
            and fewer if it is less than 0.02.
        step_time: (a, b): a step takes a + b B seconds. Given, no clock and no device is read, and a run can be
            repeated to the bit.
        source: how to measure. "in_step" measures in the training step itself, by hooks on the layers, which most
            layers allow. "halves" measures two halves of a batch in a pass of its own, for which the loss has to be
            known. "auto" measures in the step if the model allows it, and else by halves.
        metric: "adam" reports, beside the plain noise scale that decides, the one in Adam's metric.
        by_group: report the noise scale of each of the optimizer's parameter groups too.
        log: called as `log(values, step)` at each decision and measurement, and where memory ran out, for TensorBoard
            and the like (docs/logging.md). `values` holds floats and texts by name, `step` is the number of samples
            seen. On several ranks rank 0 alone calls it. An error in it ends no run.
        split: (batch, start, stop) -> a batch of its samples start:stop, laid out as the batch is delivered (in fastai
            `(*xb, *yb)`). Measuring by halves and pieces after memory ran out cut by it. None: a batch is cut only
            where each of its tensors and lists has one entry a sample.
        prior: what `bs_find` found, or a NoiseScale: the run goes by it until it has measured enough itself. Worth
            giving for a run of a few hundred steps.

    Raises:
        ValueError, TypeError: for a value that cannot be.
    """

    max_batch_size: int | None = None
    base_batch_size: int | None = None
    target: str | Target = "goodput"
    lr_scaling: str | LRRule = "auto"
    transfer: Collection[str] | None = None
    budget: str = "progress"
    max_extra: float = 1.0
    exceed_memory: bool = False
    decide_every: float = 0.05
    confidence: float = 0.9
    overhead: float | None = None
    step_time: tuple[float, float] | None = None
    source: str = "auto"
    metric: str = "plain"
    by_group: bool = False
    log: LogFunction | None = None
    split: Split | None = None
    prior: Prior | None = None

    def __post_init__(self) -> None:
        for name in SIZES:
            if getattr(self, name) is not None:
                check_size(name, getattr(self, name))
        check_choice("target", self.target, tuple(TARGETS), or_function=True)
        check_choice("lr_scaling", self.lr_scaling, LR_SCALINGS, or_function=True)
        if "lr" not in self.following:
            object.__setattr__(self, "lr_scaling", "none")
        check_choice("budget", self.budget, BUDGETS)
        if isinstance(self.max_extra, bool) or not isinstance(self.max_extra, Real):
            raise TypeError(f"max_extra={self.max_extra!r}: it must be a number, a share of the planned samples")
        if not 0 <= float(self.max_extra) < math.inf:
            raise ValueError(
                f"max_extra={self.max_extra!r}: it must be 0 (no more samples than planned) or more, and finite"
            )
        check_choice("source", self.source, SOURCES)
        check_choice("metric", self.metric, METRICS)
        if self.source == "in_step" and (self.metric != "plain" or self.by_group):
            raise ValueError("metric='adam' and by_group=True are measured by halves: leave source= at 'auto'")
        if self.split is not None and not callable(self.split):
            raise TypeError(f"split={self.split!r}: it must be a function (batch, start, stop) -> batch")
        check_share("decide_every", self.decide_every)
        check_share("confidence", self.confidence)
        if self.overhead is not None:
            check_share("overhead", self.overhead, or_zero=True)
        self._make_plain()
        if self.log is not None and not callable(self.log):
            raise TypeError(f"log={self.log!r}: it must be a function, called as log(values, step)")
        if self.step_time is not None:
            object.__setattr__(self, "step_time", _checked_step_time(self.step_time))
        if self.prior is not None:
            object.__setattr__(self, "prior", _checked_prior(self.prior))

    def _make_plain(self) -> None:
        """Turn numbers of other libraries into Python's. torch.load refuses a state with theirs."""
        for kind, names in ((int, SIZES), (float, ("max_extra", "decide_every", "confidence", "overhead"))):
            for name in names:
                if (value := getattr(self, name)) is not None:
                    object.__setattr__(self, name, kind(value))

    def __reduce__(self) -> Any:
        # A logger belongs to its process, and most cannot be pickled. So an exported Learner's callback has none.
        return _settings_of, ({f.name: getattr(self, f.name) for f in fields(self) if f.name != "log"},)

    @classmethod
    def taken_from(cls, arguments: dict[str, Any]) -> Self:
        """The settings among a function's keyword arguments, which are taken out of them."""
        return cls(**{f.name: arguments.pop(f.name) for f in fields(cls) if f.name in arguments})

    @property
    def measures(self) -> bool:
        """False if measuring is switched off."""
        return self.overhead != 0

    @property
    def may_grow(self) -> bool:
        """False if nothing would tell the batch to grow."""
        return self.measures or callable(self.target)

    @property
    def known_before(self) -> NoiseScale | None:
        """The noise scale that is known before the run."""
        return None if self.prior is None else _checked_prior(self.prior)

    def overhead_for(self, source: str) -> float:
        """The share of the run's time that measuring by this source may cost, "in step" or "halves"."""
        return OVERHEADS[source] if self.overhead is None else self.overhead

    @property
    def following(self) -> frozenset[str]:
        """The hyperparameters that follow the batch."""
        return following(self.transfer, self.lr_scaling)

    @property
    def says_what_follows(self) -> bool:
        """True if the user has said what follows the batch, by `transfer=` or by a rule for the learning rate."""
        return self.transfer is not None or self.lr_scaling != "auto"

    def check_start(self, batch_size: int, samples: int) -> None:
        """Raise ValueError if a run of `samples` samples an epoch cannot start with `batch_size`."""
        check_size("batch_size", batch_size)
        if not samples:
            raise ValueError(
                f"batch_size={batch_size}: an epoch has no batch, as where drop_last=True leaves out its only one: "
                "lower batch_size (in fastai bs), or train without adaptbs"
            )
        if samples < batch_size:
            raise ValueError(
                f"batch_size={batch_size} is more than the {samples} samples of the dataset: "
                f"start with at most {samples} (in fastai bs), or train without adaptbs"
            )
        if self.max_batch_size is not None and self.max_batch_size < batch_size:
            raise ValueError(
                f"max_batch_size={self.max_batch_size} is below batch_size={batch_size}, which the run starts with: "
                "raise max_batch_size or lower batch_size (in fastai bs)"
            )


def _settings_of(arguments: dict[str, Any]) -> Settings:
    return Settings(**arguments)


def shows_shared_arguments(cls: T, **defaults: Any) -> T:
    """Class decorator: put the shared arguments into the signature and the docstring of a class.

    Its `__init__` takes them by `**kwargs`; what it hands on to a base class it calls `**stock`. In the docstring they
    take the place of the line that says `shared arguments`.

    Args:
        cls: the class.
        defaults: of this class, where they are others. A caller that gives every default, as LightningCLI does, gives
            these.
    """
    init: Callable[..., None] = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(init)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    stock = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD and p.name == "stock"]
    shared = [
        inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(f.name, f.default), annotation=f.type
        )
        for f in fields(Settings)
    ]
    init.__signature__ = signature.replace(parameters=[*own, *shared, *stock])  # type: ignore[attr-defined]
    if cls.__doc__ and Settings.__doc__:  # python -OO has none
        text = Settings.__doc__.split("Args:\n")[1].split("\n\n")[0]
        cls.__doc__ = cls.__doc__.replace(SHARED_LINE, text)
    return cls


def _checked_step_time(value: tuple[float, float]) -> StepTime:
    try:
        a, b = (float(v) for v in value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"step_time={value!r}: it must be a pair (a, b): a step takes a + b B seconds") from error
    if not (a >= 0 and b >= 0 and 0 < a + b < float("inf")):
        raise ValueError(f"step_time={value!r}: a and b must be seconds, not negative, and not both 0")
    return StepTime(a, b)


def _checked_prior(value: Prior) -> NoiseScale:
    estimate = value if isinstance(value, NoiseScale) else next(reversed(getattr(value, "curve", ())), None)
    if not isinstance(estimate, NoiseScale):
        raise TypeError(
            f"prior={value!r}: it must be what bs_find(...) returned, or a NoiseScale such as loader.noise_scale. "
            "Leave it out where nothing is known"
        )
    return estimate

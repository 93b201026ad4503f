"""Ten tasks for a third last look, after the rule had been changed again and the twenty of the first two had been seen.

They were written down, and their learning rates chosen at a fixed batch of 64, before any of them was run with adaptbs.
They are run with it once, when a rule is fixed, and published whatever they say. Nothing is chosen on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

from lion_pytorch import Lion
from schedulefree import AdamWScheduleFree
from torch import nn
from torch.nn import functional as F
from torch.optim import Adafactor, Adagrad, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, PolynomialLR

from benchmarks.quality.tasks import mean_nll
from benchmarks.quality.untuned import third_models as networks
from benchmarks.quality.untuned.data import Data
from benchmarks.quality.untuned.second_data import COMMON, SecondData
from benchmarks.quality.untuned.second_look import exponential, falling, in_steps, warmed_linear
from benchmarks.quality.untuned.tasks import THIRD_LOOK, UntunedTask, by, held_out, root, sgd, warmed_cosine
from benchmarks.quality.untuned.third_data import INTERVALS, ThirdData

_task = partial(UntunedTask, adams=None, watched=False, use=THIRD_LOOK)


def inverse_root(optimizer: Optimizer, steps: int, warm_up: float = 0.1) -> LRScheduler:
    """Straight up, and down by the root of the steps (Vaswani et al. 2017, arXiv:1706.03762)."""
    up = max(1.0, warm_up * steps)
    return LambdaLR(optimizer, lambda step: min((step + 1) / up, (up / (step + 1)) ** 0.5))


def warmed_stable(optimizer: Optimizer, steps: int, warm_up: float = 0.05, down: float = 0.2) -> LRScheduler:
    """Straight up, a rate that stays, and straight down to 0 in the last fifth (Hu et al. 2024, arXiv:2404.06395)."""
    up = warm_up * steps
    return LambdaLR(optimizer, lambda step: max(0.0, min((step + 1) / (up + 1), 1.0, (steps - step) / (down * steps))))


def polynomial(optimizer: Optimizer, steps: int) -> LRScheduler:
    """Down to 0, quickly at first."""
    return PolynomialLR(optimizer, steps, power=2)


class ScheduleFree:
    """AdamW whose weights are averaged in place of a schedule (Defazio et al. 2024, arXiv:2405.15682).

    It has weights to train with and weights to use, and is told which are wanted.
    """

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[nn.Module, AdamWScheduleFree] = WeakKeyDictionary()

    def make(self, model: nn.Module, lr: float) -> Optimizer:
        optimizer = self._of[model] = AdamWScheduleFree(model.parameters(), lr, weight_decay=0.01)
        optimizer.train()
        return optimizer

    def averaged(self, evaluate: Callable[[nn.Module], float]) -> Callable[[nn.Module], float]:
        """The same of the weights to use."""

        def found(model: nn.Module) -> float:
            self._of[model].eval()
            metric = evaluate(model)
            self._of[model].train()
            return metric

        return found


def overlaid_convnext(data: ThirdData) -> UntunedTask:
    """Two digits, one over the other, and ten yes or no."""
    loss = F.binary_cross_entropy_with_logits
    return _task(
        "overlaid_convnext", 3, make=networks.ConvNext, loss_func=loss, train=data.overlaid.train,
        evaluate=held_out(loss, data.overlaid.held), schedule=partial(warmed_cosine, warm_up=0.1, end=0.0),
        optimizer=by(AdamW, weight_decay=0.05), candidates=(2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
    )  # fmt: skip


def corrected_letters(data: ThirdData) -> UntunedTask:
    """A text with letters missing and wrong ones, put right."""
    train, held, known = data.garbled
    return _task(
        "corrected_letters", 1, make=lambda: networks.Corrector(known), loss_func=mean_nll, train=train,
        evaluate=held_out(mean_nll, held), schedule=inverse_root,
        optimizer=by(Adam, betas=(0.9, 0.98), eps=1e-9), candidates=(2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
    )  # fmt: skip


def graph_groups(data: ThirdData) -> UntunedTask:
    """Which nodes of a graph belong together."""
    return _task(
        "graph_groups", 5, make=networks.GraphNet, loss_func=mean_nll, train=data.graphs.train,
        evaluate=held_out(mean_nll, data.graphs.held), schedule=polynomial,
        optimizer=by(Lion, weight_decay=0.01), candidates=(2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3),
    )  # fmt: skip


def point_clouds(data: ThirdData) -> UntunedTask:
    """Digits as points, by BatchNorm over all points of a batch."""
    return _task(
        "point_clouds", 4, make=networks.PointNet, loss_func=F.cross_entropy, train=data.clouds.train,
        evaluate=held_out(F.cross_entropy, data.clouds.held), schedule=in_steps,
        optimizer=partial(sgd, weight_decay=1e-4), candidates=(0.0125, 0.025, 0.05, 0.1, 0.2, 0.4),
    )  # fmt: skip


def words_llama(data: ThirdData) -> UntunedTask:
    """A language model of words as large ones are made."""
    return _task(
        "words_llama", 1, make=lambda: networks.Llama(COMMON), loss_func=mean_nll, train=data.second.words.train,
        evaluate=held_out(mean_nll, data.second.words.held), schedule=warmed_stable,
        optimizer=by(AdamW, betas=(0.9, 0.95), weight_decay=0.1), candidates=(2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
    )  # fmt: skip


def preferred_films(data: ThirdData) -> UntunedTask:
    """Which of two films a person likes, the rate constant."""
    train, held, codes = data.preferences
    return _task(
        "preferred_films", 2, make=lambda: networks.FactorizationMachine(codes), loss_func=F.soft_margin_loss,
        train=train, evaluate=held_out(F.soft_margin_loss, held), schedule=None,
        optimizer=by(Adagrad), candidates=(0.0125, 0.025, 0.05, 0.1, 0.2, 0.4),
    )  # fmt: skip


def lines_ctc(data: ThirdData) -> UntunedTask:
    """Lines of digits, not told where they stand."""
    return _task(
        "lines_ctc", 5, make=networks.LineReader, loss_func=networks.ctc, train=data.lines.train,
        evaluate=held_out(networks.ctc, data.lines.held), schedule=warmed_linear,
        optimizer=by(RMSprop), candidates=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
    )  # fmt: skip


def lifetimes_experts(data: ThirdData) -> UntunedTask:
    """When people die, some of whom leave before."""
    free = ScheduleFree()
    return _task(
        "lifetimes_experts", 3, make=lambda: networks.Experts(10, INTERVALS), loss_func=networks.hazards,
        train=data.lifetimes.train, evaluate=free.averaged(held_out(networks.hazards, data.lifetimes.held)),
        schedule=None, optimizer=free.make, candidates=(2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 0.128, 0.256),
    )  # fmt: skip


def painted_picture(data: ThirdData) -> UntunedTask:
    """A picture in a network: no noise but that of the places drawn."""
    return _task(
        "painted_picture", 2, make=networks.Painter, loss_func=F.mse_loss, train=data.picture.train,
        evaluate=root(held_out(F.mse_loss, data.picture.held)), schedule=exponential,
        optimizer=by(Adam, betas=(0.9, 0.99), eps=1e-15), candidates=(2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
    )  # fmt: skip


def feedback_counts(data: ThirdData) -> UntunedTask:
    """Counts that spread wider than Poisson's."""
    loss = networks.negative_binomial
    return _task(
        "feedback_counts", 2, make=networks.TextConvolutions, loss_func=loss, train=data.feedback.train,
        evaluate=held_out(loss, data.feedback.held), schedule=falling,
        optimizer=by(Adafactor), candidates=(5e-3, 1e-2, 2e-2, 4e-2, 8e-2, 0.16, 0.32),
    )  # fmt: skip


#: Name -> the task, made only where it is wanted: some take seconds to make.
TASKS: dict[str, Callable[[ThirdData], UntunedTask]] = {
    task.__name__: task
    for task in (
        overlaid_convnext, corrected_letters, graph_groups, point_clouds, words_llama,
        preferred_films, lines_ctc, lifetimes_experts, painted_picture, feedback_counts,
    )
}  # fmt: skip


def load_tasks(folder: Path, data: Data, names: Iterable[str]) -> dict[str, UntunedTask]:
    """Those of these names, from the files of this folder."""
    third = ThirdData(folder, SecondData(folder, data))
    return {name: TASKS[name](third) for name in names}

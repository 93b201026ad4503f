"""Ten tasks for a second last look, after the ten of the first had been seen.

They were written down, and their learning rates chosen at a fixed batch of 64, before any of them was run with adaptbs.
They are run with it once, when a rule is fixed, and published whatever they say. Nothing is chosen on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, Adamax, AdamW, Optimizer, RAdam
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, LRScheduler, MultiStepLR

from benchmarks.common.rows import Rows
from benchmarks.quality.tasks import mean_nll
from benchmarks.quality.untuned import models
from benchmarks.quality.untuned import second_models as networks
from benchmarks.quality.untuned.data import Data
from benchmarks.quality.untuned.second_data import COMMON, SecondData
from benchmarks.quality.untuned.tasks import SECOND_LOOK, UntunedTask, by, cosine, held_out, one_cycle, sgd

TEMPERATURE = 3.0  # of the teacher's and the student's probabilities
_task = partial(UntunedTask, adams=None, watched=False, use=SECOND_LOOK)


def warmed_linear(optimizer: Optimizer, steps: int, warm_up: float = 0.1) -> LRScheduler:
    """Straight up and straight down to 0, as encoders are fine-tuned (Devlin et al. 2019, arXiv:1810.04805)."""
    up = warm_up * steps
    return LambdaLR(optimizer, lambda step: min((step + 1) / (up + 1), max(0.0, (steps - step) / (steps - up))))


def falling(optimizer: Optimizer, steps: int) -> LRScheduler:
    """Straight down to 0."""
    return LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))


def in_steps(optimizer: Optimizer, steps: int) -> LRScheduler:
    """A tenth at the half of the run, and again at three quarters."""
    return MultiStepLR(optimizer, [steps // 2, 3 * steps // 4])


def exponential(optimizer: Optimizer, steps: int) -> LRScheduler:
    """To a fiftieth."""
    return ExponentialLR(optimizer, 0.02 ** (1 / steps))


def _momentum(model: nn.Module, lr: float) -> Optimizer:
    """Plain momentum, without Nesterov's."""
    return SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4)


@torch.random.fork_rng(devices=[])
def _trained(model: Callable[[], nn.Module], rows: Rows, epochs: int, lr: float) -> nn.Module:
    """A classifier trained by Adam at a batch of 64, at a falling rate, always the same."""
    torch.manual_seed(0)
    trained = model()
    optimizer = Adam(trained.parameters(), lr)
    scheduler = falling(optimizer, epochs * -(-len(rows) // 64))
    for _ in range(epochs):
        for indices in torch.randperm(len(rows)).split(64):
            x, y = rows.__getitems__(indices.tolist())
            optimizer.zero_grad()
            F.cross_entropy(trained(x), y).backward()
            optimizer.step()
            scheduler.step()
    return trained.eval()


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Divergence of the student's logits from the teacher's (Hinton et al. 2015, arXiv:1503.02531)."""
    found, wanted = (F.log_softmax(logits / TEMPERATURE, 1) for logits in (student, teacher))
    return F.kl_div(found, wanted, reduction="batchmean", log_target=True) * TEMPERATURE**2


@cache
def _pretrained(data: SecondData) -> dict[str, Tensor]:
    """Weights of an encoder that has learnt to tell departments; all but those of the head."""
    state = _trained(lambda: networks.Encoder(6), data.departments, 2, 4e-3).state_dict()
    return {name: value for name, value in state.items() if not name.startswith("head.")}


def _fine_tuned(data: SecondData) -> nn.Module:
    model = networks.Encoder(5)
    model.load_state_dict(_pretrained(data), strict=False)
    return model


def segmented_group_norm(data: SecondData) -> UntunedTask:
    """A convolutional net without BatchNorm, and a loss of every pixel."""
    return _task(
        "segmented_group_norm", 2, make=networks.Segmenter, loss_func=F.binary_cross_entropy_with_logits,
        train=data.hidden.train, evaluate=held_out(F.binary_cross_entropy_with_logits, data.hidden.held),
        schedule=one_cycle, optimizer=by(AdamW, weight_decay=0.05),
        candidates=(2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 0.128),
    )  # fmt: skip


def clusters_smoothed(data: SecondData) -> UntunedTask:
    """Smoothed labels to learn from, and the NLL of the true ones."""
    return _task(
        "clusters_smoothed", 4, make=lambda: models.mlp(40, 128, 128, 10),
        loss_func=nn.CrossEntropyLoss(label_smoothing=0.1), train=data.clusters.train,
        evaluate=held_out(F.cross_entropy, data.clusters.held), schedule=cosine,
        optimizer=_momentum, candidates=(0.0125, 0.025, 0.05, 0.1, 0.2, 0.4),
    )  # fmt: skip


def census_outputs(data: SecondData) -> UntunedTask:
    """Three outputs, and a loss that bears outliers."""
    huber, inputs = nn.HuberLoss(), data.census.held[0].shape[1]
    return _task(
        "census_outputs", 2, make=lambda: models.mlp(inputs, 64, 64, 3), loss_func=huber, train=data.census.train,
        evaluate=held_out(huber, data.census.held), schedule=in_steps,
        optimizer=by(Adam, amsgrad=True), candidates=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    )  # fmt: skip


def protein_weighted(data: SecondData) -> UntunedTask:
    """One in 112, which weighs 20 times as much; half of the units dropped; decay that is part of the gradient."""
    weighted = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(20.0))
    return _task(
        "protein_weighted", 1, make=networks.dropout_net, loss_func=weighted, train=data.protein.train,
        evaluate=held_out(weighted, data.protein.held), schedule=exponential,
        optimizer=by(Adam, weight_decay=1e-5), candidates=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    )  # fmt: skip


def words_lstm(data: SecondData) -> UntunedTask:
    """A language model of words, its rate constant."""
    return _task(
        "words_lstm", 1, make=lambda: networks.WordModel(COMMON), loss_func=mean_nll, train=data.words.train,
        evaluate=held_out(mean_nll, data.words.held), schedule=None,
        optimizer=by(Adam), candidates=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 0.128),
    )  # fmt: skip


def siamese(data: SecondData) -> UntunedTask:
    """Distances learnt from pairs."""
    train, held = data.twins
    return _task(
        "siamese", 2, make=networks.Siamese, loss_func=networks.contrastive, train=train,
        evaluate=held_out(networks.contrastive, held), schedule=falling,
        optimizer=by(Adamax), candidates=(2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
    )  # fmt: skip


def distilled(data: SecondData) -> UntunedTask:
    """A small student of a wide teacher."""
    (x, _), (held, _) = data.on_background.train.tensors, data.on_background.held
    teacher = _trained(lambda: models.small_cnn(16, 14, 10), data.on_background.train, 3, 2e-3)
    with torch.no_grad():
        train, target = Rows(x, teacher(x)), teacher(held)
    return _task(
        "distilled", 3, make=lambda: models.image_mlp(196, 64, 10), loss_func=distillation, train=train,
        evaluate=held_out(distillation, (held, target)), schedule=in_steps,
        optimizer=sgd, candidates=(0.0125, 0.025, 0.05, 0.1, 0.2, 0.4),
    )  # fmt: skip


def weather_quantiles(data: SecondData) -> UntunedTask:
    """Three quantiles from a series of hours."""
    return _task(
        "weather_quantiles", 3, make=lambda: networks.Forecaster(8), loss_func=networks.pinball,
        train=data.weather.train, evaluate=held_out(networks.pinball, data.weather.held), schedule=exponential,
        optimizer=by(Adam), candidates=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
    )  # fmt: skip


def waveform_radam(data: SecondData) -> UntunedTask:
    """Signals whose classes overlap."""
    return _task(
        "waveform_radam", 2, make=networks.signal_net, loss_func=F.cross_entropy, train=data.waveforms.train,
        evaluate=held_out(F.cross_entropy, data.waveforms.held), schedule=cosine,
        optimizer=by(RAdam), candidates=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2),
    )  # fmt: skip


def rating_fine_tuned(data: SecondData) -> UntunedTask:
    """An encoder taught another task before, all of it tuned."""
    return _task(
        "rating_fine_tuned", 2, make=lambda: _fine_tuned(data), loss_func=F.cross_entropy, train=data.ratings.train,
        evaluate=held_out(F.cross_entropy, data.ratings.held), schedule=warmed_linear,
        optimizer=by(AdamW, weight_decay=0.01), candidates=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
    )  # fmt: skip


#: Name -> the task, made only where it is wanted: some take seconds to make.
TASKS: dict[str, Callable[[SecondData], UntunedTask]] = {
    task.__name__: task
    for task in (
        segmented_group_norm, clusters_smoothed, census_outputs, protein_weighted, words_lstm,
        siamese, distilled, weather_quantiles, waveform_radam, rating_fine_tuned,
    )
}  # fmt: skip


def load_tasks(folder: Path, data: Data, names: Iterable[str]) -> dict[str, UntunedTask]:
    """Those of these names, from the files of this folder."""
    second = SecondData(folder, data)
    return {name: TASKS[name](second) for name in names}

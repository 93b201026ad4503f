"""Twenty tasks that no rule had been tuned for when they were written, half for choosing and half for a last look.

Which is which was written down before any of them was run. The tasks for choosing may be run as often as one likes.
Those for the last look are run once a rule is fixed, and published whatever they say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from lion_pytorch import Lion
from muon import SingleDeviceMuonWithAuxAdam
from pytorch_optimizer import StableAdamW
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR

from benchmarks.common.rows import Rows
from benchmarks.quality.margins import UNTUNED, Measure
from benchmarks.quality.models import Tabular, Transformer
from benchmarks.quality.tasks import Task, mean_nll
from benchmarks.quality.untuned import models
from benchmarks.quality.untuned.data import Data, Halves, Noisy, Shifted, noised, with_strangers

CHOOSE, LAST_LOOK, SECOND_LOOK, THIRD_LOOK = "choose", "last look", "second look", "third look"
Make = Callable[[nn.Module, float], Optimizer]
Schedule = Callable[[Optimizer, int], LRScheduler]


@dataclass(frozen=True, kw_only=True)
class UntunedTask(Task):
    """A task with an optimizer and a schedule of its own.

    Attributes:
        use: `CHOOSE`, `LAST_LOOK`, `SECOND_LOOK` or `THIRD_LOOK`.
        optimizer: (model, learning rate) -> optimizer.
        schedule: (optimizer, steps of the run) -> scheduler; None for a rate that stays.
        candidates: learning rates that the task's own is chosen among.
    """

    use: str
    optimizer: Make
    schedule: Schedule | None
    candidates: tuple[float, ...]

    @property
    def measure(self) -> Measure:
        return UNTUNED[self.name]

    @property
    def lrs(self) -> tuple[float, ...]:
        return self.candidates

    def make_optimizer(self, model: nn.Module, lr: float, adams: Any = None) -> Optimizer:
        return self.optimizer(model, lr)

    def make_scheduler(self, optimizer: Optimizer, batch_size: int) -> LRScheduler | None:
        steps = self.epochs * -(-len(self.train) // batch_size)
        return self.schedule(optimizer, steps) if self.schedule else None


def one_cycle(optimizer: Optimizer, steps: int) -> LRScheduler:
    """A quarter of the run up, cosine both ways; each group has its own peak."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(
        optimizer, peaks, total_steps=steps, pct_start=0.25, cycle_momentum=False, div_factor=25, final_div_factor=4e3
    )


def cosine(optimizer: Optimizer, steps: int) -> LRScheduler:
    """From the peak to 0, without a warm-up."""
    return CosineAnnealingLR(optimizer, steps)


def warmed_cosine(optimizer: Optimizer, steps: int, warm_up: float = 0.05, end: float = 0.1) -> LRScheduler:
    """A linear warm-up, and a cosine to a tenth of the peak, as language models have them."""

    def factor(step: int) -> float:
        done = step / steps
        falls = end + (1 - end) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
        return falls if done >= warm_up else (step + 1) / (warm_up * steps + 1) * falls

    return LambdaLR(optimizer, factor)


def sgd(model: nn.Module, lr: float, momentum: float = 0.9, weight_decay: float = 0.0) -> Optimizer:
    """With Nesterov's momentum, if with any."""
    return SGD(model.parameters(), lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0)


def by(kind: Any, **arguments: Any) -> Make:
    """An optimizer of this class on all parameters."""
    return lambda model, lr: kind(model.parameters(), lr=lr, **arguments)


def muon(model: nn.Module, lr: float) -> Optimizer:
    """Muon for the matrices between the first layer and the last, and Adam for all else."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    inner = [layer.weight for layer in layers[1:-1]]
    outer = [p for p in model.parameters() if all(p is not weight for weight in inner)]
    return SingleDeviceMuonWithAuxAdam([
        {"params": inner, "use_muon": True, "lr": lr, "momentum": 0.95, "weight_decay": 0},
        {"params": outer, "use_muon": False, "lr": lr / 10, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0},
    ])  # fmt: skip


def discriminative(model: nn.Module, lr: float) -> Optimizer:
    """The first convolution frozen, the second at a tenth of the head's rate, as in fine-tuning with fastai."""
    first, second, head = model[0], model[2], model[5]
    first.requires_grad_(False)
    groups = [{"params": second.parameters(), "lr": lr / 10}, {"params": head.parameters(), "lr": lr}]
    return AdamW(groups, lr, weight_decay=0.01)


@cache
def _trained_body(data: Data) -> dict[str, Tensor]:
    """Weights of the convolutions after learning to tell the digits 0 to 4."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.small_cnn(8, 14, 5)
        x, y = data.digits_among(range(5), 6400).train.tensors
        optimizer = Adam(model.parameters(), 4e-3)
        for _ in range(2):
            for rows in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
    return {name: value for name, value in model.state_dict().items() if not name.startswith("5.")}


def _fine_tuned(data: Data) -> nn.Module:
    model = models.small_cnn(8, 14, 5)
    model.load_state_dict(_trained_body(data), strict=False)
    return model


def held_out(loss: Callable[[Any, Tensor], Tensor], held: tuple[Tensor, Tensor]) -> Callable[[nn.Module], float]:
    """The mean loss on these rows, 1,000 at a time."""
    x, y = held

    def evaluate(model: nn.Module) -> float:
        parts = zip(x.split(1000), y.split(1000), strict=True)
        return sum(loss(model(part), target).item() * len(part) for part, target in parts) / len(x)

    return evaluate


def root(evaluate: Callable[[nn.Module], float]) -> Callable[[nn.Module], float]:
    """Its square root: an error in the target's units."""
    return lambda model: math.sqrt(evaluate(model))


def negative_elbo(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    """Nats per image, a pixel being on with the probability of its grey."""
    logits, mean, log_variance = output
    reconstruction = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)
    divergence = (mean**2 + log_variance.exp() - 1 - log_variance).sum(1) / 2
    return (reconstruction + divergence).mean()


def _wrong_labels(x: Tensor, y: Tensor, share: float = 0.2) -> Rows:
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(y), generator=generator) < share
    return Rows(x, torch.where(wrong, torch.randint(0, 10, y.shape, generator=generator), y))


def _for_choosing(data: Data) -> list[UntunedTask]:
    task = partial(UntunedTask, adams=None, watched=False, use=CHOOSE)
    classes, images = F.cross_entropy, data.images
    digits, housing = data.small_digits, data.housing
    adult, codes = data.adult
    words, departments, _ = data.reviews
    reviews = Halves(Rows(words[4000:], departments[4000:]), (words[:4000], departments[:4000]))
    letters, characters = data.characters(32, 40_000)
    x, y = data.some_images(20_000)
    flat, held_flat = x.flatten(1), images.held[0].flatten(1)
    share = (torch.arange(len(held_flat))[:, None] + 0.5) / len(held_flat)
    noise = torch.randn(held_flat.shape, generator=torch.Generator().manual_seed(0))
    return [
        task(
            "resnet", 5, make=models.resnet, loss_func=classes, train=Shifted(x[:10_000], y[:10_000]),
            evaluate=held_out(classes, images.held), schedule=one_cycle,
            optimizer=partial(sgd, weight_decay=5e-4), candidates=(0.025, 0.05, 0.1, 0.2),
        ),
        task(
            "vit", 4, make=models.VisionTransformer, loss_func=classes, train=Rows(x[:10_000], y[:10_000]),
            evaluate=held_out(classes, images.held), schedule=one_cycle,
            optimizer=by(AdamW, weight_decay=0.05), candidates=(2e-3, 4e-3, 8e-3, 1.6e-2),
        ),
        task(
            "denoising", 2, make=lambda: models.mlp(197, 256, 256, 196), loss_func=F.mse_loss, train=Noisy(flat),
            evaluate=held_out(F.mse_loss, noised(held_flat, share, noise)), schedule=one_cycle,
            optimizer=by(Adam), candidates=(1e-3, 2e-3, 4e-3, 8e-3),
        ),
        task(
            "bag_of_words", 2, make=lambda: models.BagOfWords(6), loss_func=classes, train=reviews.train,
            evaluate=held_out(classes, reviews.held), schedule=one_cycle,
            optimizer=by(Adagrad), candidates=(0.05, 0.1, 0.2, 0.4, 0.8),
        ),
        task(
            "census_nadam", 1, make=lambda: Tabular(codes, adult.held[0].shape[1] - len(codes)),
            loss_func=F.binary_cross_entropy_with_logits, train=adult.train,
            evaluate=held_out(F.binary_cross_entropy_with_logits, adult.held), schedule=one_cycle,
            optimizer=by(NAdam), candidates=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
        ),
        task(
            "housing_constant", 4, make=lambda: models.regression(8, 64, 64), loss_func=F.mse_loss,
            train=housing.train, evaluate=root(held_out(F.mse_loss, housing.held)), schedule=None,
            optimizer=sgd, candidates=(0.0025, 0.005, 0.01, 0.02, 0.04),
        ),
        task(
            "mixer_lion", 4, make=models.Mixer, loss_func=classes, train=Rows(x[:10_000], y[:10_000]),
            evaluate=held_out(classes, images.held), schedule=one_cycle,
            optimizer=by(Lion, weight_decay=0.1), candidates=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
        ),
        task(
            "wrong_labels", 3, make=lambda: models.image_mlp(196, 200, 10), loss_func=classes,
            train=_wrong_labels(x[:12_800], y[:12_800]), evaluate=held_out(classes, images.held), schedule=cosine,
            optimizer=by(AdamW, weight_decay=0.01), candidates=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
        ),
        task(
            "short", 5, make=lambda: models.image_mlp(64, 64, 10), loss_func=classes, train=digits.train,
            evaluate=held_out(classes, digits.held), schedule=one_cycle,
            optimizer=by(Adam), candidates=(5e-3, 1e-2, 2e-2, 4e-2),
        ),
        task(
            "letters", 1, make=lambda: Transformer(characters, 32, 32), loss_func=mean_nll, train=letters.train,
            evaluate=held_out(mean_nll, letters.held), schedule=warmed_cosine,
            optimizer=by(AdamW, betas=(0.9, 0.95), weight_decay=0.1), candidates=(2e-3, 4e-3, 8e-3, 1.6e-2),
        ),
    ]  # fmt: skip


def _for_the_last_look(data: Data) -> list[UntunedTask]:
    task = partial(UntunedTask, adams=None, watched=False, use=LAST_LOOK)
    classes, images = F.cross_entropy, data.images
    digits, friedman = data.small_digits, data.friedman
    adult, codes = data.adult
    words, _, recommended = data.reviews
    reviews = Halves(Rows(words[4000:], recommended[4000:]), (words[:4000], recommended[:4000]))
    fine = data.digits_among(range(5, 10), 10_000)
    x, y = data.some_images(20_000)
    greys = (x.flatten(1) * 0.3081 + 0.1307).clamp(0, 1)
    held_greys = (images.held[0].flatten(1) * 0.3081 + 0.1307).clamp(0, 1)
    pairs, held_pairs = data.neighbours
    chosen = with_strangers(held_pairs, torch.rand(len(held_pairs), 5, generator=torch.Generator().manual_seed(0)))
    return [
        task(
            "gru", 2, make=lambda: models.Recurrent(2), loss_func=classes, train=reviews.train,
            evaluate=held_out(classes, reviews.held), schedule=one_cycle,
            optimizer=by(Adam), candidates=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
        ),
        task(
            "muon", 4, make=lambda: models.image_mlp(196, 128, 128, 10), loss_func=classes,
            train=Rows(x[:10_000], y[:10_000]), evaluate=held_out(classes, images.held), schedule=one_cycle,
            optimizer=muon, candidates=(0.005, 0.01, 0.02, 0.04, 0.08),
        ),
        task(
            "cnn_rmsprop", 4, make=lambda: models.small_cnn(8, 14, 10), loss_func=classes,
            train=Rows(x[:10_000], y[:10_000]), evaluate=held_out(classes, images.held), schedule=one_cycle,
            optimizer=by(RMSprop), candidates=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
        ),
        task(
            "logistic_constant", 2, make=lambda: models.LogisticRegression(codes, adult.held[0].shape[1] - len(codes)),
            loss_func=F.binary_cross_entropy_with_logits, train=adult.train,
            evaluate=held_out(F.binary_cross_entropy_with_logits, adult.held), schedule=None,
            optimizer=partial(sgd, momentum=0.0), candidates=(0.05, 0.1, 0.2, 0.4, 0.8),
        ),
        task(
            "long", 4, make=lambda: models.image_mlp(196, 64, 10), loss_func=classes, train=images.train,
            evaluate=held_out(classes, images.held), schedule=one_cycle,
            optimizer=by(AdamW, weight_decay=0.01), candidates=(2e-3, 4e-3, 8e-3, 1.6e-2),
        ),
        task(
            "fine_tuned", 2, make=lambda: _fine_tuned(data), loss_func=classes, train=fine.train,
            evaluate=held_out(classes, fine.held), schedule=one_cycle,
            optimizer=discriminative, candidates=(2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2, 8e-2, 0.16),
        ),
        task(
            "autoencoder", 2, make=models.Autoencoder, loss_func=negative_elbo, train=Rows(greys, greys),
            evaluate=held_out(negative_elbo, (held_greys, held_greys)), schedule=one_cycle,
            optimizer=by(Adam), candidates=(2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
        ),
        task(
            "short_sgd", 7, make=lambda: models.small_cnn(8, 8, 10), loss_func=classes, train=digits.train,
            evaluate=held_out(classes, digits.held), schedule=one_cycle,
            optimizer=sgd, candidates=(0.025, 0.05, 0.1, 0.2),
        ),
        task(
            "neighbours", 1, make=models.SkipGram, loss_func=F.binary_cross_entropy_with_logits, train=pairs,
            evaluate=held_out(F.binary_cross_entropy_with_logits, chosen), schedule=cosine,
            optimizer=by(Adam), candidates=(2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
        ),
        task(
            "friedman", 2, make=lambda: models.regression(10, 64, 64), loss_func=F.mse_loss, train=friedman.train,
            evaluate=root(held_out(F.mse_loss, friedman.held)), schedule=one_cycle,
            optimizer=by(StableAdamW), candidates=(2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
        ),
    ]  # fmt: skip


def load_tasks(data: Data) -> dict[str, UntunedTask]:
    """All of them by name, those for choosing first."""
    return {task.name: task for task in (*_for_choosing(data), *_for_the_last_look(data))}

"""The tasks of the quality benchmark by name, and the margins of non-inferiority, set before any run."""

from __future__ import annotations

from typing import NamedTuple


class Measure(NamedTuple):
    """How a task is judged.

    Attributes:
        metric: the held-out error, by name; the smaller the better.
        margin: how much worse than fixed 64 still counts as no worse, relative.
    """

    title: str
    metric: str
    margin: float


MEASURES = {
    "flights": Measure("flights, MLP, AdamW (beta2 .99)", "RMSE, minutes", 0.01),
    "flights_999": Measure("flights, MLP, AdamW (beta2 .999)", "RMSE, minutes", 0.01),
    "movielens": Measure("MovieLens, dot product, AdamW (beta2 .99)", "MSE, stars²", 0.01),
    "mnist_adam": Measure("MNIST, CNN, Adam (beta2 .999)", "NLL, nats", 0.05),
    "mnist_adam_99": Measure("MNIST, CNN, Adam (beta2 .99)", "NLL, nats", 0.05),
    "mnist_sgd": Measure("MNIST, CNN, SGD with momentum", "NLL, nats", 0.05),
    "mnist_bn": Measure("MNIST, CNN with BatchNorm, Adam (beta2 .999)", "NLL, nats", 0.05),
    "text": Measure("characters, transformer, AdamW (beta2 .99)", "log perplexity, nats", 0.01),
}

"""The parts of the quality benchmark: which runs are made, in which order, and what chooses what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from adaptbs.decision import policy
from benchmarks.quality.adaptive import LARGEST, PIECES, Adaptive, adaptive_run, article_run, fixed_run_timed, ramp
from benchmarks.quality.compared import own_best
from benchmarks.quality.lengths import MEASURED, SIZES, length_run, lengths_of, measured_run, rule_of
from benchmarks.quality.results import CHOOSING, FEW, FIRST, REPORTED, SOME, Part, Row, best_of
from benchmarks.quality.rules import MULTIPLIERS, OWN_LR_SIZES, STEP_TIMES, Fixed
from benchmarks.quality.tasks import BASE, Task
from benchmarks.quality.training import fixed_run

ALL = ("lr", "betas", "eps", "weight_decay")
LR_ONLY = ("lr",)
CRITICAL = ("adaptbs.decision.policy.CRITICAL_OF_ADAPTIVE", "adaptbs.decision.policy.CRITICAL_OF_SGD")
FIXED_ORDER = (64, 512, 256, 1024, 128, 2048, 4096)  # the most telling first


class Work(NamedTuple):
    """One run to be made."""

    task: Task
    rule: str
    seed: int
    run: Callable[[], Row]


Tasks = list[Task]


def base_lr(tasks: Tasks) -> Iterator[Work]:
    """Every task's learning rate at batch 64, for choosing."""
    for task in tasks:
        for lr in task.lrs:
            name = f"lr {lr:g}"

            def run(task: Task = task, lr: float = lr, name: str = name) -> Row:
                return {**fixed_run(replace(task, lr=lr), Fixed(BASE), FIRST, looks=()), "rule": name}

            yield Work(task, name, FIRST, run)


def with_chosen_lr(task: Task) -> Task:
    """The task at the best of the learning rates tried in `base_lr`."""
    rules = {f"lr {lr:g}": lr for lr in task.lrs}
    chosen = best_of(list(rules), task.name, Part("base_lr"))
    if chosen is None:
        raise SystemExit(f"{task.name} has no learning rate yet: run the part base_lr first")
    return replace(task, lr=rules[chosen])


def fixed(tasks: Tasks) -> Iterator[Work]:
    """Fixed batches under the transfer rule."""
    for size in FIXED_ORDER:
        seeds = REPORTED if size == BASE else SOME
        yield from (_fixed(task, Fixed(size), seed) for task in tasks for seed in seeds)


def fixed_beta1(tasks: Tasks) -> Iterator[Work]:
    """The same with beta1^k, for Adam."""
    for size in FIXED_ORDER[1:]:
        yield from (_fixed(task, Fixed(size, beta1_power=1), seed) for task in tasks if task.adams for seed in SOME)


def fixed_small(tasks: Tasks) -> Iterator[Work]:
    """The smaller ones, which take most of the time; and 64 on choosing seeds, to try things out against."""
    for size in (32, 16):
        yield from (_fixed(task, Fixed(size), seed) for task in tasks for seed in SOME)
    yield from (_fixed(task, Fixed(BASE), seed) for task in tasks for seed in CHOOSING[:3])


def own_lr(tasks: Tasks) -> Iterator[Work]:
    """Fixed batches at the learning rate that is best for them: chosen on one seed, reported on others."""
    for size in OWN_LR_SIZES:
        rules = [Fixed(size, multiplier) for multiplier in MULTIPLIERS]
        for task in tasks:
            yield from (_fixed(task, rule, FIRST) for rule in rules)
            chosen = own_best(task.name, size)
            if chosen is not None and chosen.lr_multiplier != 1:  # (else it is among the fixed ones)
                yield from (_fixed(task, chosen, seed) for seed in FEW)


def adaptive(tasks: Tasks) -> Iterator[Work]:
    """From three starts, under the models of the step time, with the hyperparameters for 64.

    Last from 256 at the learning rate that is best there, where that is not the transferred one.
    """
    rules = [Adaptive(f"adaptive {BASE} {clock}", clock=clock) for clock in STEP_TIMES]
    starts = [Adaptive(f"adaptive {start} gpu", start) for start in (256, 16)]
    yield from _all([rules[0], *starts, *rules[1:]], tasks)
    for task in tasks:
        stated = own_best(task.name, 256)
        if stated is not None and stated.lr_multiplier != 1:
            rule = Adaptive("adaptive 256, its own lr, gpu", 256, stated=stated)
            yield from (_adaptive(task, rule, seed) for seed in SOME)


def peers(tasks: Tasks) -> Iterator[Work]:
    """What others do, on the same work."""
    for task in tasks:
        yield from (_fixed(task, Fixed(LARGEST, transfer=False), seed) for seed in SOME)
    for task in tasks:
        rules = (doubling(task.epochs), adascale())
        yield from (_adaptive(task, rule, seed) for rule in rules for seed in SOME)
    known = Part("adaptive")
    for task in tasks:
        for seed in SOME:
            if like := known.rows.get((task.name, f"adaptive {BASE} gpu", seed)):
                yield _adaptive(task, signal_free(task, "gpu", like), seed)


def doubling(epochs: int) -> Adaptive:
    """Twice the batch at each epoch, the learning rate untouched (Smith et al. 2018, arXiv:1711.00489)."""
    return Adaptive(
        "x2 per epoch", clock=None,
        options={
            "target": lambda noise_scale, size, progress: BASE * 2 ** min(int(progress * epochs + 1e-9), epochs - 1),
            "budget": "epochs", "overhead": 0, "lr_scaling": "none",
        },
    )  # fmt: skip


def adascale(batch_size: int = 512, max_extra: float = 3.0) -> Adaptive:
    """A fixed batch, the learning rate times the gain, until they add up (Johnson et al. 2020, arXiv:2007.05105)."""
    return Adaptive(
        f"AdaScale {batch_size}", batch_size, "gpu",
        options={
            "target": lambda noise_scale, size, progress: size,
            "lr_scaling": "gain", "transfer": LR_ONLY, "max_extra": max_extra,
        },
        # Its gain, the learning rate's and what is counted, is that of B_simple.
        patches=dict.fromkeys((*CRITICAL, "adaptbs.decision.policy.COUNTED"), 1),
    )  # fmt: skip


def signal_free(task: Task, clock: str, like: Row) -> Adaptive:
    """As many steps and samples as the adaptive run of the same seed, in an exponential ramp that asks no gradient."""
    planned = task.epochs * len(task.train)
    largest = min(policy.largest_batch_size(BASE), len(task.train) // 8)
    target = ramp(BASE, max(BASE, like["samples"] / like["steps"]), largest)
    efficiency = planned / like["samples"]  # of every sample alike
    return Adaptive(
        f"ramp like {clock}", clock=None,
        # A budget of progress needs measurements to be allowed; what they say is not asked.
        options={
            "target": target, "transfer": ALL, "overhead": 1e-6, "decide_every": 1 / PIECES,
            "max_extra": like["samples"] / planned,
        },
        patches={"adaptbs.run.rules.sample_efficiency": lambda *_: efficiency},
    )  # fmt: skip


ABLATED = ("flights", "movielens", "mnist_adam", "mnist_sgd")


def _beta1(power: float) -> dict[str, object]:
    """beta1^(k^power)."""
    powers = lambda k: (k**power, k)  # noqa: E731
    return {"adaptbs.hyperparameters.transfer.powers": powers, "adaptbs.hyperparameters.scaler.powers": powers}


#: One switch each, against the adaptive run from 64 on the GPU-like step time. The rule's constants are changed in
#: `benchmarks.quality.untuned.ablations`.
ABLATIONS: tuple[Adaptive, ...] = (
    *(Adaptive(f"no {name}", options={"transfer": tuple(n for n in ALL if n != name)}) for name in ALL),
    Adaptive("beta1^k", patches=_beta1(1)),
    Adaptive("beta1 as it is", patches=_beta1(0)),
    Adaptive("budget of epochs", options={"budget": "epochs"}),
    Adaptive("max_extra 0.5", options={"max_extra": 0.5}),
    Adaptive("no early decisions", patches={"adaptbs.decision.timer.SOON": 0, "adaptbs.decision.timer.FAR": 10**9}),
    Adaptive("overhead of its own time", patches={"adaptbs.timing.overhead.CREDIT": 1}),
    Adaptive("by halves", options={"source": "halves"}),
    Adaptive("target noise_scale", options={"target": "noise_scale"}),
)


def ablations(tasks: Tasks) -> Iterator[Work]:
    """Parts of the default left out; what does not concern an optimizer is left out for it."""
    for rule in ABLATIONS:
        known = [task for task in tasks if task.name in ABLATED and concerns(rule, task)]
        yield from (_adaptive(task, rule, seed) for task in known for seed in FEW)


def concerns(rule: Adaptive, task: Task) -> bool:
    """Whether the switch makes a difference: SGD has only its learning rate, Adam no decoupled decay."""
    has = {"lr"} | ({"betas", "eps"} if task.adams else set())
    has |= {"weight_decay"} if task.adams and task.adams.weight_decay is not None else set()
    moved = set(rule.options.get("transfer", ALL)) & has
    return (moved != has or "transfer" not in rule.options) and (task.adams is not None or "beta1" not in rule.name)


def cpu(tasks: Tasks) -> Iterator[Work]:
    """Seconds on this machine: fixed and adaptive run in turn, and take turns in going first."""
    rule = Adaptive(f"adaptive {BASE} cpu", clock="cpu")
    for task in tasks:
        for seed in REPORTED:
            pair = [
                Work(task, Fixed(BASE).name, seed, lambda t=task, s=seed: fixed_run_timed(t, Fixed(BASE), s)),
                _adaptive(task, rule, seed),
            ]
            yield from pair if seed % 2 == 0 else pair[::-1]


def article(tasks: Tasks) -> Iterator[Work]:
    """The article's recipe on flights, in seconds, in turn."""
    for task in tasks:
        if task.name == "flights":
            for seed in SOME:
                for size in (BASE, 512) if seed % 2 == 0 else (512, BASE):
                    rule = Fixed(size, transfer=False)
                    yield Work(task, rule.name, seed, lambda t=task, b=size, s=seed: article_run(t, b, s))


def lengths(tasks: Tasks) -> Iterator[Work]:
    """Larger batches for longer, beside the base run that predicts how much longer it takes."""
    for task in tasks:
        for seed in FEW:
            yield Work(task, MEASURED, seed, lambda t=task, s=seed: measured_run(t, s))
            for size in SIZES:
                for n in lengths_of(task):
                    run = lambda t=task, b=size, n=n, s=seed: length_run(t, Fixed(b), n, s)  # noqa: E731
                    yield Work(task, rule_of(size, n), seed, run)


def _fixed(task: Task, rule: Fixed, seed: int) -> Work:
    return Work(task, rule.name, seed, lambda: fixed_run(task, rule, seed))


def _adaptive(task: Task, rule: Adaptive, seed: int) -> Work:
    return Work(task, rule.name, seed, lambda: adaptive_run(task, rule, seed))


def _all(rules: Iterable[Adaptive], tasks: Tasks) -> Iterator[Work]:
    for rule in rules:
        yield from (_adaptive(task, rule, seed) for task in tasks for seed in REPORTED)


PARTS: dict[str, Callable[[Tasks], Iterator[Work]]] = {
    part.__name__: part
    for part in (
        base_lr, own_lr, fixed, adaptive, cpu, peers, article, ablations, fixed_beta1, fixed_small, lengths,
    )
}

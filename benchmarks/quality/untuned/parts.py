"""The parts of the benchmark of untuned tasks: which runs are made, and what is chosen from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from torch.utils.data import DataLoader

from adaptbs import bs_find
from benchmarks.quality.adaptive import Adaptive, adaptive_run
from benchmarks.quality.parts import Work
from benchmarks.quality.results import Part, Row
from benchmarks.quality.rules import Fixed
from benchmarks.quality.tasks import BASE
from benchmarks.quality.training import as_it_is, fixed_run, order_of
from benchmarks.quality.untuned.ablations import (
    ABLATIONS,
    CONSTANTS,
    OF_ROOT,
    OF_ROOT_BY_HALF,
    OF_SGD,
    OLD_RULE,
    WITHIN_RATE,
    concerns,
    measured,
)
from benchmarks.quality.untuned.chosen_lr import LR_SEEDS, with_chosen_lr
from benchmarks.quality.untuned.compared import (
    DEFAULT,
    FAILED,
    FOLDER,
    FULL,
    HALF_AGAIN,
    LARGER,
    LR_PARTS,
    OF_EPOCHS,
    PRIOR,
    PRIOR_TASKS,
    RATES,
    STARTS,
    TWICE_AS_LONG,
)
from benchmarks.quality.untuned.persistence import name_of, persistence_run
from benchmarks.quality.untuned.sharpness import UNDEFINED, sharpness_run
from benchmarks.quality.untuned.tasks import CHOOSE, LAST_LOOK, SECOND_LOOK, THIRD_LOOK, UntunedTask
from benchmarks.quality.untuned.yardstick import SEEDS as YARDSTICK_SEEDS
from benchmarks.quality.untuned.yardstick import SIZES as YARDSTICK_SIZES
from benchmarks.quality.untuned.yardstick import next_times, rule_of, run

SEEDS = range(10, 13)  # of what is reported
SIX = range(10, 16)  # of what is judged: three often resolve nothing
SIXTEEN = range(10, 26)  # of the tasks that six do not resolve, from some start or at some learning rate
SPREAD = ("resnet", "vit", "bag_of_words", "wrong_labels", "short", "gru_departments", "longer")
FEW = SEEDS[:2]  # of what is compared with them
MORE = range(10, 15)  # of the second look and the third, where three would often resolve nothing
MOST = range(10, 20)  # of their tasks that five do not resolve either: fixed 64 spreads too far over them
NOISY = ("protein_weighted", "siamese", "weather_quantiles", "rating_fine_tuned", "overlaid_convnext",
         "corrected_letters", "point_clouds", "preferred_films", "lines_ctc", "painted_picture")  # fmt: skip
FIXED = Fixed(BASE)
CHANGED_AFTER = ("logistic_constant", "short_sgd")
MEASURED_TASKS = ("resnet", "census_nadam", "housing_constant", "wrong_labels")
SGD_TASKS = ("resnet", "housing_constant")
SGD_OF_LOOKS = ("logistic_constant", "short_sgd", "clusters_smoothed", "distilled", "point_clouds")
ABLATED = ("resnet", "denoising", "bag_of_words", "census_nadam", "wrong_labels", "mlp_rmsprop", "longer")
Tasks = list[UntunedTask]


def base_lr(tasks: Tasks) -> Iterator[Work]:
    """Every task's learning rate at batch 64."""
    for task in tasks:
        for lr in task.lrs:
            for seed in LR_SEEDS:
                yield Work(task, f"lr {lr:g}", seed, lambda t=task, lr=lr, s=seed: _at(t, lr, s))


def _at(task: UntunedTask, lr: float, seed: int) -> Row:
    return {**fixed_run(replace(task, lr=lr), FIXED, seed, looks=()), "rule": f"lr {lr:g}"}


def fixed(tasks: Tasks) -> Iterator[Work]:
    """The batch of 64 that all else is held against."""
    for task in tasks:
        looked, chosen = later_seeds(task), choosing_seeds(task)
        for seed in {SECOND_LOOK: looked, THIRD_LOOK: looked, CHOOSE: chosen}.get(task.use, SEEDS):
            yield Work(task, FIXED.name, seed, lambda t=task, s=seed: fixed_run(with_chosen_lr(t), FIXED, s))


def later_seeds(task: UntunedTask) -> range:
    """The seeds of a task of the second look or the third."""
    return MOST if task.name in NOISY else MORE


def choosing(tasks: Tasks) -> Iterator[Work]:
    """The default on the tasks for choosing."""
    yield from _judged([Adaptive(DEFAULT)], tasks)


def _judged(rules: list[Adaptive], tasks: Tasks) -> Iterator[Work]:
    for task in tasks:
        yield from _all(rules, [task], CHOOSE, choosing_seeds(task))


def choosing_seeds(task: UntunedTask) -> range:
    """The seeds of a task for choosing."""
    return SIXTEEN if task.name in SPREAD else SIX


def ablations(tasks: Tasks) -> Iterator[Work]:
    """Each constant of the rule changed, on the tasks for choosing that take least time."""
    for rule in (OLD_RULE, *ABLATIONS):
        known = [task for task in tasks if task.name in ABLATED and concerns(rule, task.name in SGD_TASKS)]
        yield from _all([rule], known, CHOOSE, FEW)


def constants(tasks: Tasks) -> Iterator[Work]:
    """Constants of the rule that play a part in few runs, each on tasks where it does."""
    for usual, changed, names in CONSTANTS:
        # The rule as it is now is run beside it: the other parts may be of a rule before it.
        yield from _all([usual, changed], [task for task in tasks if task.name in names], CHOOSE, SEEDS)


def beta1(tasks: Tasks) -> Iterator[Work]:
    """The power of Adam's beta1 that the rule had before, on the run that now and then lost its footing by it."""
    long_run = [task for task in tasks if task.name == "longer"]
    yield from _all([OF_ROOT_BY_HALF, OF_ROOT], long_run, CHOOSE, SIXTEEN)


def sgd_rate(tasks: Tasks) -> Iterator[Work]:
    """SGD's learning rate as it was before, and each change of it alone, on the residual net that diverged by it."""
    yield from _all(OF_SGD, [task for task in tasks if task.name == "resnet"], CHOOSE, SIXTEEN)


def measurements(tasks: Tasks) -> Iterator[Work]:
    """Half and twice of `overhead`, and of the measurements."""
    for task in tasks:
        if task.name in MEASURED_TASKS:
            yield from _all(measured(task.name), [task], CHOOSE, SEEDS)


def starts(tasks: Tasks) -> Iterator[Work]:
    """The default on the tasks for choosing, from batches that the hyperparameters are not stated for."""
    yield from _judged([Adaptive(name, start) for name, start in STARTS.items()], tasks)


def full_device(tasks: Tasks) -> Iterator[Work]:
    """The default on the tasks for choosing, where a sample takes as long in any batch."""
    yield from _judged([Adaptive(FULL, clock="compute")], tasks)


def lr_quarter(tasks: Tasks) -> Iterator[Work]:
    """The default and fixed 64, at a quarter of the best learning rate; and progress counted within the rate."""
    yield from _at_another_lr("lr_quarter", tasks)
    counted = [task for task in tasks if task.name in ABLATED and concerns(WITHIN_RATE, task.name in SGD_TASKS)]
    for task in counted:
        for seed in SEEDS:
            run = lambda t=task, s=seed: adaptive_run(_at_multiple("lr_quarter", t), WITHIN_RATE, s)  # noqa: E731
            yield Work(task, WITHIN_RATE.name, seed, run)


def lr_twice(tasks: Tasks) -> Iterator[Work]:
    """The default and fixed 64, at twice the best learning rate."""
    yield from _at_another_lr("lr_twice", tasks)


def _at_another_lr(part: str, tasks: Tasks) -> Iterator[Work]:
    for task in [task for task in tasks if task.use == CHOOSE]:
        for seed in choosing_seeds(task):
            fixed_one = lambda t=task, s=seed: fixed_run(_at_multiple(part, t), FIXED, s)  # noqa: E731
            ours = lambda t=task, s=seed: adaptive_run(_at_multiple(part, t), Adaptive(DEFAULT), s)  # noqa: E731
            yield Work(task, FIXED.name, seed, fixed_one)
            yield Work(task, DEFAULT, seed, ours)


def _at_multiple(part: str, task: UntunedTask) -> UntunedTask:
    chosen = with_chosen_lr(task)
    return replace(chosen, lr=LR_PARTS[part] * chosen.lr)


def persistence(tasks: Tasks) -> Iterator[Work]:
    """What was to tell a learning rate that is too low, at fixed 64 on the tasks for choosing."""
    for task in [task for task in tasks if task.use == CHOOSE]:
        for rate in RATES:
            yield Work(task, name_of(rate), SEEDS[0], lambda t=task, r=rate: _persistence_run(t, r))


def _persistence_run(task: UntunedTask, rate: float) -> Row:
    return persistence_run(with_chosen_lr(task), rate, SEEDS[0])


def sharpness(tasks: Tasks) -> Iterator[Work]:
    """The curvature times the learning rate, at fixed 64 on the tasks for choosing."""
    for seed in FEW:
        for task in [task for task in tasks if task.use == CHOOSE and task.name not in UNDEFINED]:
            for rate in RATES:
                work = lambda t=task, r=rate, s=seed: sharpness_run(with_chosen_lr(t), r, s)  # noqa: E731
                yield Work(task, name_of(rate), seed, work)


def prior(tasks: Tasks) -> Iterator[Work]:
    """What `bs_find` finds on a fresh model, handed to the run."""
    for task in tasks:
        if task.name in PRIOR_TASKS:
            for seed in SEEDS:
                yield Work(task, PRIOR, seed, lambda t=task, s=seed: _with_prior(with_chosen_lr(t), s))


def _with_prior(task: UntunedTask, seed: int) -> Row:
    model = task.make_model(seed + 1000)  # another start than the run's
    loader = DataLoader(task.train, BASE, shuffle=True, generator=order_of(seed + 1000), collate_fn=as_it_is)
    optimizer = task.make_optimizer(model, task.lr)
    found = bs_find(model, task.loss_func, loader, lr=task.lr / 4, n_batch=5, optimizer=optimizer)
    return adaptive_run(task, Adaptive(PRIOR, options={"prior": found}), seed)


def last_look(tasks: Tasks) -> Iterator[Work]:
    """The default on the tasks for the last look. To be run once, when the rule is fixed."""
    yield from _all([Adaptive(DEFAULT)], tasks, LAST_LOOK, SEEDS)


def again(tasks: Tasks) -> Iterator[Work]:
    """Tasks of the last look for which the rule was changed after it. They are no longer unseen."""
    yield from _all([Adaptive(DEFAULT)], [task for task in tasks if task.name in CHANGED_AFTER], LAST_LOOK, SEEDS)


def larger(tasks: Tasks) -> Iterator[Work]:
    """Larger fixed batches on the tasks for the second look, each at several learning rates."""
    for rule in LARGER:
        for task in [task for task in tasks if task.use == SECOND_LOOK]:
            for seed in SEEDS:
                yield Work(task, rule.name, seed, lambda t=task, r=rule, s=seed: fixed_run(with_chosen_lr(t), r, s))


def second_look(tasks: Tasks) -> Iterator[Work]:
    """The default on the tasks for the second look. To be run once, when the rule is fixed."""
    for task in tasks:
        yield from _all([Adaptive(DEFAULT)], [task], SECOND_LOOK, later_seeds(task))


def second_again(tasks: Tasks) -> Iterator[Work]:
    """The same by the rule as it was changed after it, for other reasons. They are no longer unseen."""
    yield from second_look(tasks)


def third_look(tasks: Tasks) -> Iterator[Work]:
    """The default on the tasks for the third look. To be run once, when the rule is fixed."""
    for task in tasks:
        yield from _all([Adaptive(DEFAULT)], [task], THIRD_LOOK, later_seeds(task))


def sgd_again(tasks: Tasks) -> Iterator[Work]:
    """Tasks of all looks that SGD trains, for which the rule was changed after them. They are no longer unseen."""
    for task in [task for task in tasks if task.name in SGD_OF_LOOKS]:
        yield from _all([Adaptive(DEFAULT)], [task], task.use, MORE if task.use in (SECOND_LOOK, THIRD_LOOK) else SEEDS)


def failed(tasks: Tasks) -> Iterator[Work]:
    """Why the default did worse on some tasks of the later looks: more epochs at 64, and no more epochs than asked."""
    fewer = [Adaptive(HALF_AGAIN, options={"max_extra": 0.5}), Adaptive(OF_EPOCHS, options={"budget": "epochs"})]
    for task in [task for task in tasks if task.name in FAILED]:
        for seed in MORE:
            yield Work(task, TWICE_AS_LONG, seed, lambda t=task, s=seed: _twice_as_long(with_chosen_lr(t), s))
        yield from _all(fewer, [task], task.use, MORE)


def _twice_as_long(task: UntunedTask, seed: int) -> Row:
    return {**fixed_run(replace(task, epochs=2 * task.epochs), FIXED, seed, looks=()), "rule": TWICE_AS_LONG}


def yardstick(tasks: Tasks) -> Iterator[Work]:
    """Larger fixed batches on the tasks for choosing, longer and longer until they come to the error of fixed 64."""
    for count in range(1, len(YARDSTICK_SEEDS) + 1):
        for rate in RATES:
            for task in [with_chosen_lr(task) for task in tasks if task.use == CHOOSE]:
                for size in (BASE, *YARDSTICK_SIZES):
                    yield from _until_reached(task, rate, size, YARDSTICK_SEEDS[:count])


def _until_reached(task: UntunedTask, rate: float, size: int, seeds: range) -> Iterator[Work]:
    rows = Part("yardstick", FOLDER).rows
    while (times := next_times(rows, task.name, rate, size, seeds)) is not None:
        for seed in seeds:
            work = lambda t=times, s=seed: run(task, rate, size, t, s)  # noqa: E731
            yield Work(task, rule_of(rate, size, times), seed, work)
        rows = Part("yardstick", FOLDER).rows


def _all(rules: Iterable[Adaptive], tasks: Tasks, use: str, seeds: Iterable[int]) -> Iterator[Work]:
    for rule in rules:
        for task in tasks:
            for seed in seeds if task.use == use else ():
                run = lambda t=task, r=rule, s=seed: adaptive_run(with_chosen_lr(t), r, s)  # noqa: E731
                yield Work(task, rule.name, seed, run)


PARTS: dict[str, Callable[[Tasks], Iterator[Work]]] = {
    part.__name__: part
    for part in (
        base_lr, fixed, choosing, ablations, constants, beta1, sgd_rate, measurements, starts, full_device,
        lr_quarter, lr_twice, persistence, sharpness, prior, last_look, again, larger, second_look, second_again,
        third_look, sgd_again, failed, yardstick,
    )
}  # fmt: skip

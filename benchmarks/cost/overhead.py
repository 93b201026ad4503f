"""What adaptbs adds to a training run's time, against `overhead`.

    python -m benchmarks.cost.overhead [--minutes 24] [--quick] [--only NAME]

The same run five times at once: plain; plain again, as a control; and with adaptbs measuring but not growing
(`max_batch_size` equal to the start) at overheads of 0 (in place, nothing measured), .02 and .05. The five advance in
turn, some 10 ms or 20 steps each, in an order drawn anew every time, so that whatever else the machine does falls on
all of them alike; the sums of their times are compared at the end. A round is five whole runs, with the dense
measurements at the start and a budget that is the whole run's. Two runs of the same code may differ by some percent for
all of their length, as where their tensors happen to lie in memory. So each task is given as many rounds as fit into
the same time, two at the least, each with models made anew, and the medians count.

The baseline is the loop as it would be written without adaptbs: torch's DataLoader with `shuffle=True`, or fastai's;
the same model, loss, optimizer and number of steps. The program ends with an error where a run has made another number
of steps than the others. Ratios of each round, to the mean of the two plain runs (the control's: to the other one), are
written to results/overhead.json: of the clock on the wall, and of the processor's time; microseconds of the
processor's time a step beyond the baseline's; and how many measurements a run made and what they took of its time, by
the run's own account. The runs time their steps by the clock on the wall, as everywhere: on some machines it takes
longer to read the processor's time than adaptbs takes for all else that it does at a step.

Training alone is compared: data are synthetic, and there is no validation. All runs make the same steps: the budget is
one of epochs, as a budget of progress would add samples where the base batch is smaller (k = 4). All of the measuring
is paid for: the target is a function that keeps the size, since adaptbs' own would have less measured once the batch
has settled. Every run makes 28 measurements (8 at its start, 20 over its length), whatever they cost. So lengths are
those of short trainings, 1,600 to 3,000 steps, but for one of 800 that shows what these measurements do to such a run,
and two of 10,000 in which they are next to nothing.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from fastai.basics import Callback, CancelValidException, DataLoaders, Learner
from fastai.basics import DataLoader as FastaiLoader
from fastai.callback import schedule  # noqa: F401  (adds fit_one_cycle)
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.fastai import AdaptiveBatchSize
from adaptbs.run import TrainingRun
from adaptbs.timing.device_clock import PER_STEP_OF_A_LEARNER, DeviceClock
from benchmarks.common.machine import save
from benchmarks.cost.measuring import cnn, mlp, tabular

BATCH_SIZE = 64
EPOCH_STEPS = 200
BLOCK_MS = 10.0  # that a run advances at a time: the machine's speed varies within tenths of a second
# Steps that it advances at the least. The first few of an iteration would else show the other runs' optimizers, as if
# they were one of the same loop.
BLOCK_STEPS = 20
RUNS: dict[str, float | None] = {"plain": None, "control": None, "0": 0.0, "0.02": 0.02, "0.05": 0.05}
DEVICE = torch.device("cpu")  # benchmarks.gpu measures a GPU
STEADY = {"max_batch_size": BATCH_SIZE, "budget": "epochs"}  # the same steps in all runs


class RunClock(DeviceClock):
    """A run's clock that stands still while the others have their turn."""

    @contextmanager
    def pause(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        if self._last is not None:  # the step under way has begun so much later
            self._last += time.perf_counter() - begin


def stay(noise_scale, batch_size: int, progress: float) -> int:
    """A target of one's own gets all the measuring it has paid for; adaptbs' would want less once it knows enough."""
    return batch_size


def account(run: TrainingRun) -> dict[str, float]:
    """How many measurements a run has made, and seconds of measuring and deciding, as the run counts them."""
    made = sum(record["event"] == "measurement" for record in run.controller.history.records)
    return {"measurements": made, "measuring_seconds": run.controller.overhead_spent.seconds}


def loop(
    make: Callable, data: tuple, epochs: int, overhead: float | None, block: int, spent: dict, base: int = BATCH_SIZE
) -> Iterator[int]:
    """A loop in plain torch that stops every few steps, and at its end, and says how many it has made.

    Args:
        overhead: None is without adaptbs.
        block: steps from one stop to the next.
        spent: takes the run's `account` when it ends.
        base: the batch size that the hyperparameters are stated for. With a smaller one than the loader's they are set
            at every step, as where the batch has grown.
    """
    model, loss_func, _ = make(BATCH_SIZE)
    model.to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def train() -> Iterator[int]:
        clock = RunClock(DEVICE)
        if overhead is None:
            loader = DataLoader(TensorDataset(*data), BATCH_SIZE, shuffle=True)
        else:
            loader = AdaptiveDataLoader(
                TensorDataset(*data), BATCH_SIZE, shuffle=True, model=model, optimizer=optimizer, loss_func=loss_func,
                epochs=epochs, base_batch_size=base, target=stay, overhead=overhead, **STEADY,
            )  # fmt: skip
            if overhead:  # else it reads none
                loader.training_run.use_clock(clock)
        made = 0
        for _ in range(epochs):
            for x, y in loader:
                optimizer.zero_grad()
                loss_func(model(x.to(DEVICE)), y.to(DEVICE)).backward()
                optimizer.step()
                made += 1
                if made % block == 0:
                    with clock.pause():
                        yield made
        if overhead:
            spent.update(account(loader.training_run))
        yield made

    return train()


def small_mlp(n: int) -> tuple[nn.Module, nn.Module, tuple]:
    """A model whose step takes about a millisecond."""
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    return model, nn.CrossEntropyLoss(), (torch.randn(n, 64), torch.randint(10, (n,)))


def wide_mlp(n: int) -> tuple[nn.Module, nn.Module, tuple]:
    """A model whose step takes about 3 ms."""
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return model, nn.CrossEntropyLoss(), (torch.randn(n, 784), torch.randint(10, (n,)))


def wide_cnn(n: int) -> tuple[nn.Module, nn.Module, tuple]:
    """A model with BatchNorm, measured by halves, whose step takes about 8 ms; `cnn`'s takes 4."""
    return cnn(n, width=24)


class Rows(Dataset):
    """(categories, numbers, target) of one row."""

    def __init__(self, tensors: tuple) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, i: int) -> tuple:
        return tuple(t[i] for t in self.tensors)


def fit(
    make: Callable, data: tuple, epochs: int, overhead: float | None, block: int, spent: dict, base: int = BATCH_SIZE
) -> Iterator[int]:
    """A Learner's fit that stops every few steps; the arguments are as for `loop`."""
    model, loss_func, _ = make(BATCH_SIZE)
    train = FastaiLoader(Rows(data), bs=BATCH_SIZE, shuffle=True)
    dls = DataLoaders(train, FastaiLoader(Rows(data), bs=BATCH_SIZE, n=BATCH_SIZE), device=DEVICE)
    learn = Learner(dls, model.to(DEVICE), loss_func=loss_func)
    adaptive = []
    if overhead is not None:
        adaptive.append(AdaptiveBatchSize(base_batch_size=base, target=stay, overhead=overhead, **STEADY))
    turns = Turns(block, *adaptive)

    def train_in_turns() -> None:
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(epochs, 1e-3, cbs=[*adaptive, turns])
        if overhead:
            spent.update(account(adaptive[0].training_run))

    return turns.run(train_in_turns)


class Turns(Callback):
    """Stops a fit every few batches: it has a thread of its own, and a baton goes to and fro, so that only one runs."""

    order = 100  # after all others

    def __init__(self, block: int, adaptive: AdaptiveBatchSize | None = None) -> None:
        self._adaptive, self._block, self._made = adaptive, block, 0
        self._clock = RunClock(DEVICE, PER_STEP_OF_A_LEARNER)
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._running = True
        self._error: BaseException | None = None

    def run(self, fit: Callable[[], None]) -> Iterator[int]:
        """Let the fit go on from stop to stop; the steps that it has made so far."""
        thread = threading.Thread(target=self._in_thread, args=(fit,), daemon=True)
        thread.start()
        while True:
            self._go.release()
            self._stopped.acquire()
            if self._error is not None:
                raise self._error
            yield self._made
            if not self._running:
                return

    def _in_thread(self, fit: Callable[[], None]) -> None:
        torch.set_num_threads(1)
        self._go.acquire()
        try:
            fit()
        except BaseException as error:
            self._error = error
        self._running = False
        self._stopped.release()

    def before_train(self) -> None:
        run = self._adaptive.training_run if self._adaptive is not None else None
        if run is not None and not run.has_begun and run.settings.overhead:  # else it reads none
            run.use_clock(self._clock)

    def after_batch(self) -> None:
        if self.training:
            self._made += 1
            if self._made % self._block == 0:
                with self._clock.pause():
                    self._stopped.release()
                    self._go.acquire()

    def before_validate(self) -> None:
        raise CancelValidException


def in_turn(runs: dict[str, Iterator[int]]) -> dict[str, tuple[float, float]]:
    """(seconds on the wall, seconds of the processor) of each run, all advancing a block at a time.

    Raises:
        RuntimeError: where they have not all made the same number of steps, so that they do not compare.
    """
    seconds, made = {name: (0.0, 0.0) for name in runs}, dict.fromkeys(runs, 0)
    left = list(runs)
    while left:
        random.shuffle(left)
        for name in (*left, *reversed(left)):  # there and back, which cancels what drifts
            if name not in left:
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            steps = next(runs[name], None)
            if steps is None:
                left.remove(name)
            else:
                made[name] = steps
            total_wall, total_cpu = seconds[name]
            seconds[name] = total_wall + time.perf_counter() - wall, total_cpu + time.process_time() - cpu
    if len(set(made.values())) > 1:
        raise RuntimeError(f"the runs have made different numbers of steps, so they do not compare: {made}")
    return seconds


def wide_tabular(n: int) -> tuple[nn.Module, nn.Module, tuple]:
    """A tabular model of fastai's whose step takes about 5 ms."""
    model, loss_func, batch = tabular(n, batch_norm=False)
    inputs, outputs = model.layers[0][0].in_features, 1
    model.layers = nn.Sequential(
        *(nn.Linear(inputs, 600), nn.ReLU(), nn.Linear(600, 300), nn.ReLU(), nn.Linear(300, outputs))
    )
    return model, loss_func, batch


GROWN = BATCH_SIZE // 4
#: how to run it, the model, milliseconds of a step, and epochs in a full run
TASKS: dict[str, tuple[Callable, Callable, float, int]] = {
    "small MLP, plain loop": (loop, small_mlp, 0.9, 15),
    "small MLP, plain loop, k = 4": (partial(loop, base=GROWN), small_mlp, 0.9, 15),
    "small MLP, plain loop, long": (loop, small_mlp, 0.9, 50),
    "small MLP, plain loop, long, k = 4": (partial(loop, base=GROWN), small_mlp, 0.9, 50),
    "MLP, plain loop": (loop, mlp, 2, 12),
    "MLP, plain loop, k = 4": (partial(loop, base=GROWN), mlp, 2, 12),
    "wide MLP, plain loop": (loop, wide_mlp, 5, 8),
    "wide MLP, plain loop, k = 4": (partial(loop, base=GROWN), wide_mlp, 5, 8),
    "CNN with BatchNorm, plain loop": (loop, cnn, 4, 12),
    "CNN with BatchNorm, plain loop, k = 4": (partial(loop, base=GROWN), cnn, 4, 12),
    "wide CNN with BatchNorm, plain loop, short": (loop, wide_cnn, 10, 4),
    "fastai tabular": (fit, wide_tabular, 5, 10),
    "fastai tabular, k = 4": (partial(fit, base=GROWN), wide_tabular, 5, 10),
    "fastai tabular with BatchNorm": (fit, tabular, 3.5, 12),
}


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    plain = (seconds["plain"] + seconds["control"]) / 2
    return {"control": seconds["control"] / seconds["plain"]} | {
        name: seconds[name] / plain for name, overhead in RUNS.items() if overhead is not None
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=24, help="of all tasks; each has two rounds at the least")
    parser.add_argument("--quick", action="store_true", help="one short round, to try it")
    parser.add_argument("--only", default="", help="tasks whose name contains this; nothing is saved then")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, (run, make, milliseconds, epochs) in TASKS.items():
        if args.only not in name:
            continue
        block = max(BLOCK_STEPS, round(BLOCK_MS / milliseconds))
        epochs = max(2, epochs // 4) if args.quick else epochs
        steps = epochs * EPOCH_STEPS
        fit_in = 60 * args.minutes / len(TASKS) / (len(RUNS) * steps * milliseconds / 1000)
        rounds = 1 if args.quick else max(2, round(fit_in))
        _, _, data = make(BATCH_SIZE * EPOCH_STEPS)
        in_turn({"warm": run(make, data, 1, 0.2, block, {})})
        found: list[tuple[dict[str, float], ...]] = []  # of each round the ratios on the wall, and of the processor
        accounts: list[dict[str, tuple[float, float]]] = []  # measurements of each run, and their share of its time
        for i in range(rounds):
            torch.manual_seed(i)
            spent: dict[str, dict[str, float]] = {n: {} for n in RUNS}
            runs = {n: run(make, data, epochs, overhead, block, spent[n]) for n, overhead in RUNS.items()}
            gc.collect()
            gc.freeze()  # one collection of all that fastai has loaded takes as long as 60 steps, and falls on one run
            seconds = in_turn(runs)
            found.append(tuple(ratios({n: s[clock] for n, s in seconds.items()}) for clock in (0, 1)))
            step_ms = 1000 * seconds["plain"][0] / steps
            print(f"{name}, {step_ms:.1f} ms a step")
            for clock, by_run in zip(("wall", "CPU "), found[-1], strict=True):
                print(f"  {clock}  " + "   ".join(f"{n} {r:.4f}" for n, r in by_run.items()), flush=True)
            cpu_us = 1e6 * (seconds["plain"][1] + seconds["control"][1]) / 2 / steps
            beyond = {n: cpu_us * (r - 1) for n, r in found[-1][1].items()}
            print("  us a step  " + "   ".join(f"{n} {us:+.1f}" for n, us in beyond.items()), flush=True)
            whole = cpu_us * 1e-6 * steps
            shares = {n: (s["measurements"], s["measuring_seconds"] / whole) for n, s in spent.items() if s}
            print("  measured   " + "   ".join(f"{n} {made} ({of:.2%})" for n, (made, of) in shares.items()))
            accounts.append(shares)
        for kind in found[0][0]:
            wall, cpu = ([clocks[i][kind] for clocks in found] for i in (0, 1))
            rows.append({
                "task": name, "run": kind, "steps": steps, "step_ms": step_ms,
                "ratio": statistics.median(wall), "rounds": wall,
                "cpu_ratio": statistics.median(cpu), "cpu_rounds": cpu,
                "cpu_us_beyond": cpu_us * (statistics.median(cpu) - 1),
            })  # fmt: skip
            if kind in accounts[0]:
                made, share = (statistics.median(each[kind][i] for each in accounts) for i in (0, 1))
                rows[-1] |= {"measurements": made, "measuring_share": share}
    if not args.quick and not args.only:
        print(save("overhead", {"batch_size": BATCH_SIZE, "block_ms": BLOCK_MS, "rows": rows}))


if __name__ == "__main__":
    main()

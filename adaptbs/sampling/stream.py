"""Batches of an IterableDataset. Sizes are requested, and the batches that arrive show how many samples there are."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..model import batch_length
from .batch_info import BatchInfo
from .batch_sampler import AdaptiveBatchSampler
from .draw import Rest
from .pass_cut import CutsBy, PassCut


class StreamSampler(AdaptiveBatchSampler):
    """Requests batches without end. The dataset, or its last worker, ends the pass.

    Its `sampler` only gives the assumed length of a pass, for the pace of decisions and the schedule.

    Attributes:
        dataset: the dataset, if it saves and loads its own position and this process reads it; else None.
    """

    dataset: Any = None

    def read_here(self, dataset: Any) -> None:
        """Note that this process reads the dataset, whose own state is saved if it has one."""
        if callable(getattr(dataset, "state_dict", None)) and callable(getattr(dataset, "load_state_dict", None)):
            self.dataset = dataset

    @contextmanager
    def over(self, cut: PassCut) -> Iterator[None]:
        """A context: an iteration that begins inside it is over this pass, and resumes the dataset's own state."""
        if isinstance(cut, StreamPassCut) and cut.origin["dataset"] is not None:
            self.dataset.load_state_dict(copy.deepcopy(cut.origin["dataset"]))
        with super().over(cut):
            yield

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise ValueError if the pass resumes a state of the dataset that it cannot load."""
        if state["dataset"] is not None and self.dataset is None:
            raise ValueError(
                "the saved run has its dataset's own state_dict(), which only a dataset with load_state_dict() in this "
                "process can load: build the loader with the same dataset and num_workers=0"
            )

    def new_pass(self, rest: Rest | None = None, after: PassCut | None = None) -> StreamPassCut:
        """Begin a pass over the stream. The arguments are those of StreamPassCut."""
        return StreamPassCut(self, self.dataset, rest, after)


class StreamPassCut(PassCut):
    """One pass over a stream.

    A worker whose data have ended does not deliver the batches still requested from it. They never enter `delivered`.
    So optimizer steps are counted by the batches that arrive, not by those requested. All batches of a step count as
    cut at the size of its first, even if one of them was requested at another size.

    A resumed run requests the same batches again and skips those that were delivered. These requests are counted from
    `origin`: the beginning of the pass, or the place of the latest state that the dataset has saved.

    Attributes:
        asked: batches requested since the origin: pairs of a cut size and the number of requests at it.
        delivered: every batch that has arrived and that the loop has not begun.
        origin: state of the dataset, and place in the optimizer step being cut. An empty state: the pass's beginning.
    """

    def __init__(
        self, sampler: CutsBy, dataset: Any = None, rest: Rest | None = None, after: PassCut | None = None
    ) -> None:
        super().__init__(sampler, None, after)
        self.issued = deque()
        self.asked: list[list[int]] = []
        self.delivered: deque[BatchInfo] = deque() if after is None else after.queue
        self._dataset, self._saved = dataset, rest.state["asked"] if rest is not None else []
        self.origin: dict[str, Any] = {"dataset": None, "batch": self._batch, "cut_size": self._cut_size}
        if isinstance(after, StreamPassCut):
            self.origin |= {"batch": after.place_in_step, "cut_size": after._arriving}
        if rest is not None:
            self.origin = {name: rest.state[name] for name in self.origin}
        self._first_place: int = self.origin["batch"]
        self._arriving: int = self.origin["cut_size"]  # size of the step that the latest batch belongs to
        self._came = 0  # number of batches that have arrived
        self._came_before = 0  # those of them that came before the origin
        self._to_skip = rest.state["begun"] if rest is not None else 0
        self._latest_is_whole = False  # the latest batch held all samples that were requested
        self._samples = rest.state["samples"] if rest is not None else 0  # of the batches that were delivered

    def batches(self) -> Iterator[list[int]]:
        """Yield one list per requested batch, with one entry per requested sample. The entries are not used."""
        self._batch, self._cut_size = self.origin["batch"], self.origin["cut_size"]
        for cut_size, requests in self._saved:
            for _ in range(requests):
                self._cut_size = cut_size
                yield self._ask()
        while True:
            if not self._batch:
                self._cut_size = self._fitting(self._sampler.size())
            yield self._ask()

    def _fitting(self, size: int) -> int:
        """The size of the next step. With `drop_last` its batches are no longer than what is left of the pass.

        A DataLoader drops what an IterableDataset leaves of the latest request. Of a larger batch that would be more
        than a stock loader drops.
        """
        sampler = self._sampler
        has_grown = size > sampler.first * sampler.batches_per_step
        if not has_grown or not sampler.drop_last or self._came < self._to_skip:
            return size
        left = sampler.pass_samples - self._samples - sum(batch.num_samples for batch in self.issued)
        return min(size, left) if left >= sampler.batches_per_step else size

    def _ask(self) -> list[int]:
        """Request the next batch of the step being cut."""
        if not self.asked or self.asked[-1][0] != self._cut_size:
            self.asked.append([self._cut_size, 0])
        self.asked[-1][1] += 1
        per_step = self._sampler.batches_per_step
        samples = self._cut_size // per_step + (self._batch < self._cut_size % per_step)
        self._batch = (self._batch + 1) % per_step
        self.issued.append(BatchInfo(self._cut_size, samples, not self._batch))
        return [0] * samples

    @property
    def queue(self) -> deque[BatchInfo]:
        return self.delivered

    def is_new(self, batch: Any) -> bool:
        """Match a fetched batch with its request. False if the batch was delivered before the run was resumed."""
        held = _num_samples(batch)
        issued = self._answered(held)
        self._latest_is_whole = held == issued.num_samples == self._cut_size // self._sampler.batches_per_step
        if not self.place_in_step:
            self._arriving = issued.cut_size
        self._came += 1
        issued = issued._replace(cut_size=self._arriving, ends_step=not self.place_in_step)
        if self._came <= self._to_skip:
            return False
        self.delivered.append(issued)
        self._samples += issued.num_samples
        return True

    @property
    def place_in_step(self) -> int:
        """Number of batches of the current optimizer step that have arrived."""
        place: int = (self._first_place + self._came) % self._sampler.batches_per_step
        return place

    @property
    def begun(self) -> int:
        """Batches that the loop has begun."""
        return self._came - min(self._came, self._to_skip) - len(self.delivered)

    @property
    def left(self) -> tuple[int, int]:
        """Batches of this pass that the loop has not begun, by its assumed length, and their samples."""
        sampler = self._sampler
        waiting, left = len(self.delivered), max(sampler.pass_samples - self._samples, 0)
        batches = waiting - (-left * sampler.batches_per_step // sampler.size())
        return batches, left + sum(batch.num_samples for batch in self.delivered)

    @property
    def is_at_its_end(self) -> bool:
        """True if as many samples have been delivered as the pass is assumed to have."""
        return self._samples >= self._sampler.pass_samples and not self.delivered

    def _answered(self, held: int | None) -> BatchInfo:
        """Remove the request that a batch of `held` samples answers. None: its layout does not tell."""
        # A collate function may make more samples than were requested.
        if held is None or held > max(issued.num_samples for issued in self.issued):
            return self.issued.popleft()
        while self.issued[0].num_samples < held:  # the request went to an exhausted worker
            self.issued.popleft()
        return self.issued.popleft()._replace(num_samples=held)

    def state_dict(self) -> dict[str, Any]:
        """The requests since the origin, how many of their batches the loop has begun, and the origin.

        If the dataset has a state of its own, the origin moves here. It does not while the loop holds a batch that it
        has not begun, nor at a short batch, after which the dataset may have ended and begun anew.
        """
        if self._dataset is not None and self._latest_is_whole and not self.delivered and not self.issued:
            now = copy.deepcopy(self._dataset.state_dict())
            self.origin = {"dataset": now, "batch": self._batch, "cut_size": self._cut_size}
            self.asked, self._came_before = [], self._came
        begun = self._came - self._came_before - len(self.delivered)
        samples = self._samples - sum(batch.num_samples for batch in self.delivered)
        return {**self.origin, "asked": [list(run) for run in self.asked], "begun": begun, "samples": samples}


def _num_samples(batch: Any) -> int | None:
    """Number of samples in a batch. None if its layout does not tell."""
    try:
        return batch_length(batch)
    except TypeError:
        return None

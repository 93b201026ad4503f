"""A sampler whose last epoch ends with the run, and goes on where a run that is resumed is longer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from ..loader import AdaptedLoader
from ..sampling import read_all


class UpToTheEnd(Sampler[Any]):
    """A sampler's indices, cut in the run's last epoch to those that the run still takes.

    Args:
        sampler: the sampler of whole epochs.

    Attributes:
        cuts: True if the run ends within the epoch.
    """

    def __init__(self, sampler: Any) -> None:
        self._sampler, self.cuts = sampler, False
        self._length = len(sampler)
        self._rest: Iterator[Any] = iter(())  # indices of a cut epoch that come after the run's end
        self._beyond: list[Any] | Tensor = []  # those of them that have been read

    def begin_epoch(self, left: int, whole: int | None = None) -> None:
        """Let the next epoch, of `whole` indices, have at most `left` indices."""
        self._length = min(len(self._sampler), max(left, 0))
        self.cuts = left < (len(self._sampler) if whole is None else whole)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        indices = iter(self._sampler)
        if self.cuts:
            self._rest, self._beyond = indices, []
        for _, index in zip(range(self._length), indices, strict=False):
            yield index

    def state_dict(self) -> dict[str, Any]:
        """The length of the epoch, and the indices that it leaves out. Those that it has must have been read."""
        if not len(self._beyond):
            self._beyond = read_all(self._rest)
        return {"length": self._length, "beyond": self._beyond}

    def lengthened(self, state: dict[str, Any], loader: dict[str, Any], samples: int, batch: int) -> dict[str, Any]:
        """The state of an adaptive loader whose run goes on for longer within the epoch that it had ended in.

        Args:
            state: `state_dict()` of this sampler in the saved run.
            loader: that of the adaptive loader.
            samples: indices that the run has more than the saved one.
            batch: an epoch has whole batches of so many; 1: or less.
        """
        length, beyond = state["length"], state["beyond"]
        more = min(max(samples, 0), len(beyond))
        self._beyond = beyond[more:]
        if not more or loader["source"]["rest"] is None:
            return loader
        rest = loader["source"]["rest"]
        order = {**rest["order"], "indices": _joined(rest["order"]["indices"], beyond[:more])}
        loader = {**loader, "source": {**loader["source"], "rest": {**rest, "order": order}}}
        return AdaptedLoader.lengthened(loader, (length + more) // batch * batch - length // batch * batch)


def _joined(first: Any, then: Any) -> Any:
    if isinstance(first, Tensor) and isinstance(then, Tensor):
        return torch.cat([first, then])
    return [index for part in (first, then) for index in (part.tolist() if isinstance(part, Tensor) else part)]

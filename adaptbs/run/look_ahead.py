"""The ways in which a loop takes its batches: one at a time, or one ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class LookAhead(Protocol):
    """The number of batches that a loop fetches before it works on them, as far as it shows.

    Attributes:
        ahead: that number; None while it is not known.
        settled: True once that cannot change any more. If it is 0 then, nothing else is asked.
        asks: True if the loop has asked for another batch since it was given the latest, as far as that is noted: while
            nothing has been trained.
    """

    ahead: int | None
    settled: bool
    asks: bool

    @property
    def is_idle(self) -> bool:
        """True while the loop trains on none of the batches that it takes, although it has trained before."""
        ...

    def fetched(self) -> None:
        """The loop has been given a batch."""
        ...

    @property
    def begun(self) -> int:
        """Batches, of those it was given, that the loop works on or has worked on."""
        ...

    def wants_next(self) -> int:
        """The loop wants another batch. Return the number of batches that it has finished."""
        ...

    def works(self, *_: Any) -> None:
        """The loop makes a backward pass or a step."""
        ...

    def close(self) -> None:
        """Watch no longer."""
        ...


class NoLookAhead:
    """The loop trains on each batch before it asks for the next."""

    ahead: int | None = 0
    settled, asks, is_idle = True, False, False

    def __init__(self) -> None:
        self.begun = 0

    def fetched(self) -> None:
        self.begun += 1

    def wants_next(self) -> int:
        return self.begun

    def works(self, *_: Any) -> None:
        return None

    def close(self) -> None:
        return None


class OneAhead:
    """The loop fetches another batch before it trains on the one before, as it is known to."""

    ahead: int | None = 1
    settled, asks, is_idle = True, False, False

    def __init__(self) -> None:
        self._fetched = 0

    def fetched(self) -> None:
        self._fetched += 1

    @property
    def begun(self) -> int:
        # Where only one batch was fetched, it is the one that the loop works on.
        return max(self._fetched - 1, min(self._fetched, 1))

    def wants_next(self) -> int:
        return self._fetched - 1

    def works(self, *_: Any) -> None:
        return None

    def close(self) -> None:
        return None


class OneAheadOrLook(OneAhead):
    """OneAhead, unless the iteration is only a look at batches: `settled` once a backward pass or a step is made in it.

    Args:
        parameters: the parameters being trained.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self.settled = False
        self._handles = on_backward(parameters, self.works)

    def works(self, *_: Any) -> None:
        self.settled = True

    def fetched(self) -> None:
        super().fetched()
        self.asks = False
        if self.settled:
            self.close()

    def wants_next(self) -> int:
        self.asks = True
        return super().wants_next()

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


class StillAhead(OneAhead):
    """OneAhead in a loop that begins an iteration before it has worked on the last batch of the one before.

    So does `try: following = next(batches)`, `except StopIteration: batches = iter(loader)`, between the forward and
    the backward pass of a batch.
    """

    @property
    def begun(self) -> int:
        return max(self._fetched - 1, 0)


class DetectLookAhead:
    """The loop trains on each batch before it asks for the next, or looks one ahead to copy it to the device meanwhile.

    The first backward pass, or step, shows which: by how many batches had been fetched before it. Later steps would not
    tell, because a GradScaler leaves some out and accumulation makes one of several batches. Where two batches have
    been fetched and nothing was done with them, nobody trains, and each batch is done with when the next is wanted.

    Where three or more had been fetched, the loop looks further ahead, or it has passed batches over, or it adds up the
    losses of several. The second backward pass shows the last of these: as many more have been fetched by then. The
    other two cannot be told apart.

    Args:
        parameters: the parameters being trained.
        tell: called when a backward pass or a step has shown more: with True if it is not clear which batch it belongs
            to, and with the number of batches that had been fetched by the first, once that is certain.
        forward: a module whose forward passes are noticed too, if gradients are on. For parameters in shards, which are
            given no gradient by a backward pass that does not reduce them.
        has_trained: True if an earlier iteration has trained. Then one that does not is a look at the data.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        tell: Callable[[bool, int | None], None] | None = None,
        forward: nn.Module | None = None,
        has_trained: bool = False,
    ) -> None:
        self._fetched, self._has_trained = 0, has_trained
        self._first: int | None = None  # batches that had been fetched by the first pass, where that is not clear
        self._tell = tell
        self.ahead: int | None = None
        self.settled = self.asks = False
        self._handles = on_backward(parameters, self.works)
        if forward is not None:
            self._handles.append(forward.register_forward_pre_hook(self._runs))

    def _runs(self, *_: Any) -> None:
        if torch.is_grad_enabled():
            self.works()

    def fetched(self) -> None:
        self._fetched, self.asks = self._fetched + 1, False
        if self._handles and self.settled:
            self.close()

    @property
    def is_idle(self) -> bool:
        return self._has_trained and self.ahead == 0 and not self.settled

    @property
    def begun(self) -> int:
        ahead = self.ahead if self.ahead is not None else 1
        # Where only one batch was fetched, it is the one that the loop works on.
        return max(self._fetched - ahead, min(self._fetched, 1))

    def wants_next(self) -> int:
        self.asks = True
        if self.ahead is None and self._fetched > 1:
            self.ahead = 0
        if self.settled and self.ahead == 0:
            self.close()
        return self._fetched - (1 if self.ahead is None else self.ahead)

    def works(self, *_: Any) -> None:
        """The loop makes a backward pass or a step."""
        if self.settled or not self._fetched:
            return
        if self._fetched < 3:
            self.ahead, self.settled = self._fetched - 1, True
            self._say(False)
        elif self._first is None:
            self._first = self._fetched
            self._say(True)
        elif self._fetched > self._first:
            self.settled = True
            unclear = self._fetched != 2 * self._first
            self._say(unclear, self._first)

    def _say(self, unclear: bool, fetched: int | None = None) -> None:
        if self._tell is not None:
            self._tell(unclear, fetched)

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def on_backward(parameters: Iterable[Tensor], function: Callable[..., None]) -> list[Any]:
    """Call a function where a backward pass reaches any of these parameters. Return the hooks' handles."""
    return [
        p.register_post_accumulate_grad_hook(function)  # type: ignore[no-untyped-call]
        for p in parameters
        if p.requires_grad and p.is_leaf
    ]

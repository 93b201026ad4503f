"""How a loop takes its batches: one at a time, or one ahead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor


class LookAhead(Protocol):
    """How many batches a loop fetches before it works on them, as far as it shows.

    Attributes:
        ahead: that number; None while it is not known. Once it is known to be 0, nothing else is asked any more.
    """

    ahead: int | None

    def fetched(self) -> None:
        """Take note of a batch that the loop has been given."""
        ...

    @property
    def begun(self) -> int:
        """Batches, of those it was given, that the loop works on or has worked on."""
        ...

    def wants_next(self) -> int:
        """Take note that the loop wants another batch; return how many batches it is through with."""
        ...

    def close(self) -> None:
        """Watch no longer."""
        ...


class NoLookAhead:
    """The loop trains on each batch before it asks for the next."""

    ahead: int | None = 0

    def __init__(self) -> None:
        self.begun = 0

    def fetched(self) -> None:
        self.begun += 1

    def wants_next(self) -> int:
        return self.begun

    def close(self) -> None:
        return None


class DetectLookAhead:
    """The loop trains on each batch before it asks for the next, or looks one ahead to copy it to the device meanwhile.

    The first backward pass, or step, shows which: by how many batches had been fetched before it. Later steps would not
    tell, because a GradScaler leaves some out and accumulation makes one of several batches. Where two batches have
    been fetched and nothing was done with them, nobody trains, and each batch is done with when the next is wanted.

    Args:
        parameters: the parameters being trained.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._fetched = 0
        self.ahead: int | None = None
        self._handles: list[Any] = [
            p.register_post_accumulate_grad_hook(self.works)  # type: ignore[no-untyped-call]
            for p in parameters
            if p.requires_grad and p.is_leaf
        ]

    def fetched(self) -> None:
        self._fetched += 1
        if self._handles and self.ahead is not None:
            self.close()

    @property
    def begun(self) -> int:
        ahead = self.ahead if self.ahead is not None else 1
        # Where only one batch was fetched, it is the one that the loop works on.
        return max(self._fetched - ahead, min(self._fetched, 1))

    def wants_next(self) -> int:
        if self.ahead is None and self._fetched > 1:
            self.ahead = 0
        if self.ahead == 0:
            self.close()
        return self._fetched - (1 if self.ahead is None else self.ahead)

    def works(self, *_: Any) -> None:
        """Take note of a backward pass or a step."""
        if self.ahead is None:
            self.ahead = 1 if self._fetched == 2 else 0

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

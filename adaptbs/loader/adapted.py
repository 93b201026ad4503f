"""AdaptiveDataLoader inside of a library's own loop: what an adapter states, says and asks."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from ..sampling import SharedSampler, whole_order
from .data_loader import AdaptiveDataLoader
from .loop_facts import LoopFacts
from .stock_loader import made_with


class AdaptedLoader(AdaptiveDataLoader):
    """The loader that an adapter puts in the place of a stock one, once the library has made the optimizer.

    Args:
        facts: what the adapter knows of the library's loop.
        loader: the stock loader that is taken over; see `from_loader`. Of a DistributedSampler the whole order is taken
            over, of which each rank is delivered the same samples as before.
        arguments: of AdaptiveDataLoader; they go before what the loader was made with.

    Attributes:
        order: the sampler of all ranks' samples, which was taken over; None where they are drawn here.

    Raises:
        ValueError, TypeError: as AdaptiveDataLoader; nothing has been changed then.
    """

    def __init__(self, facts: LoopFacts, loader: DataLoader[Any], **arguments: Any) -> None:
        self._facts = facts
        made = {**made_with(loader), **arguments}
        if made.get("sampler") is not None:
            made["sampler"] = whole_order(made["sampler"])
        super().__init__(**made)
        self.order = made.get("sampler")

    def gradients_are_ready(self) -> None:
        """Say that the next optimizer step's gradients are in `.grad`, changed by nothing but a loss scale or clipping.

        Call it before each step of the optimizer, on all ranks, where `LoopFacts.says_when_ready`. Collective where
        several ranks measure.
        """
        self._session.gradients_are_ready()

    def pause(self) -> None:
        """Say that the loop is through with its batch, and does other work before it wants the next, as a validation.

        Only where it fetches no batch ahead. Collective where several ranks measure.
        """
        self._session.run.tracker.finish()

    def go_on(self) -> None:
        """Say that the other work is done: what it took is no part of a step's time."""
        self._session.run.controller.start_clock()

    @property
    def epoch(self) -> int:
        """Number of the epoch that is under way or comes next, from 0; where a run was resumed, too."""
        return self._session.run.controller.progress_tracker.epoch

    @staticmethod
    def lengthened(state: dict[str, Any], samples: int) -> dict[str, Any]:
        """The `state_dict()` of an epoch whose sampler yields `samples` more."""
        source = state["source"]
        if not samples or source["rest"] is None:
            return state
        rest = {**source["rest"], "left": source["rest"]["left"] + samples}
        return {**state, "source": {**source, "rest": rest}}

    @property
    def batches_left(self) -> int:
        """Batches of this epoch after the one that the loop works on, at the size of now; 0 if the run ends with it.

        A batch that was fetched ahead is among them. It goes by the sampler's length. Between two epochs it is that of
        the whole next one.
        """
        epoch, session = self._session.source.delivering, self._session
        return session.length if epoch is None else session.length - epoch.begun

    @property
    def repeated_samples(self) -> int:
        """Samples that an epoch ends with again, so that every rank has equally many.

        0 under a budget of progress, where an epoch may end anywhere.
        """
        order, progress = self._session.source.order, self._session.run.controller.progress_tracker
        return order.padding if isinstance(order, SharedSampler) and progress.max_extra is None else 0

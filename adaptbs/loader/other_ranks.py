"""Converts a saved state to more or fewer ranks: torchrun restarts with the nodes that are left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def for_ranks(
    state: Mapping[str, Any],
    world_size: int,
    *,
    start_batch_size: int,
    batches_per_step: int,
    epoch_samples: int,
) -> dict[str, Any]:
    """A saved state, as one of a run on `world_size` ranks whose optimizer steps have as many samples.

    All that decisions depend on is counted in samples of all ranks, so most of a state stays. Batches that were cut for
    the other ranks, but not begun, are cut again. A pass goes on at a place that the ranks can share: up to
    world_size - 1 samples of it are delivered once more.

    Args:
        state: as saved; it is not changed.
        world_size: ranks of this run.
        start_batch_size: samples of this run's first optimizer steps.
        batches_per_step: batches that make up its steps, of all ranks together.
        epoch_samples: samples of its passes.

    Raises:
        ValueError: where the steps would be others, or the place in the run cannot be shared by these ranks.
    """
    saved, controller = state["world_size"], state["controller"]
    if saved == world_size:
        return dict(state)
    accumulation = controller["batches_per_step"] // saved
    if (start_batch_size, batches_per_step) != (controller["start_batch_size"], accumulation * world_size):
        _refuse(saved, world_size, controller["start_batch_size"], accumulation)
    *_, ends_step = state["tracker"]["current"]
    if not ends_step:
        raise ValueError(
            f"the saved run has world_size={saved}, this one {world_size}, and it was saved in the middle of an "
            "optimizer step, whose gradients are gone: save after a step"
        )
    source = state["source"]
    return {
        **state,
        "world_size": world_size,
        "controller": {**controller, "batches_per_step": batches_per_step, "epoch_samples": epoch_samples},
        "source": {**source, "rest": _rest(source["rest"], world_size, epoch_samples)},
    }


def _refuse(saved: int, world_size: int, start: int, accumulation: int) -> None:
    samples, left = divmod(start, accumulation * world_size)
    advice = (
        f"go on with a number of processes that divides {start // accumulation}"
        if left
        else f"give batch_size={samples}, accumulation_steps={accumulation}"
    )
    raise ValueError(
        f"the saved run has world_size={saved}, this one {world_size}: an optimizer step has to have the "
        f"{start} samples, in {accumulation} batches a rank, that it began with: {advice}"
    )


def _rest(rest: Mapping[str, Any] | None, world_size: int, pass_samples: int) -> dict[str, Any] | None:
    """The rest of a pass, to be cut anew from the first sample that has not been delivered."""
    if rest is None:
        return None
    if "indices" in rest.get("order", {"indices": None}):
        raise ValueError(
            "the saved run is within a pass whose order cannot be drawn again, so it goes on with as many processes "
            "only: save at an epoch's end, or use shuffle=True or one of torch's samplers"
        )
    delivered = rest["cut"] - sum(num_samples for _, num_samples, _ in rest["issued"])
    position = delivered - delivered % world_size
    return {
        **rest, "order": {**rest["order"], "position": position}, "issued": [], "cut": position,
        "left": max(pass_samples - position, 0), "batch": 0, "step_left": 0,
    }  # fmt: skip

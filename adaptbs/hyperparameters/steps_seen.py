"""Counts the steps that an optimizer's averages have seen, group by group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any, NamedTuple

from .bias_correction import Accumulated, StepCount, read_all


class Leader(NamedTuple):
    """A group that stands for all groups whose averages have seen the same steps.

    Attributes:
        group: number of the group, the first of them.
        steps: reads how many steps the optimizer has made on it.
        accumulated: what the averages of all of them have accumulated.
    """

    group: int
    steps: StepCount
    accumulated: Accumulated


class StepsSeen:
    """The steps that the averages of each group have accumulated, counted once for groups that have seen the same.

    Example: of three groups the second was frozen for a while. The first and the third share what they have
    accumulated, so there are two leaders: group 0, for itself and group 2, and group 1.

    Attributes:
        of_groups: the accumulated steps of each group; empty until steps are first counted.
        leaders: of the latest count.
        counted: groups that there were at the latest count.
    """

    def __init__(self) -> None:
        self.of_groups: list[Accumulated] = []
        self.leaders: list[Leader] = []
        self.counted = 0

    def count(self, state: Mapping[Any, Any], groups: Sequence[Mapping[str, Any]], *, wait: bool) -> None:
        """Take in the steps made on each group, and let those share what they have seen that have seen the same.

        Args:
            state: the optimizer's state.
            groups: its groups, with their parameters.
            wait: wait for a device that holds the count; else the steps prepared are taken to have been made. A group
                that is counted for the first time is waited for.
        """
        alike: dict[Any, Leader] = {}
        counts = [StepCount(group["params"]) for group in groups]
        known = len(self.of_groups)
        made = read_all(counts, state, groups, [wait or i >= known for i in range(len(groups))])
        self.of_groups += [Accumulated() for _ in groups[known:]]
        for i, steps in enumerate(made):
            so_far = self.of_groups[i]
            key = *astuple(so_far), steps
            if key not in alike:
                alike[key] = Leader(i, counts[i], replace(so_far))
                alike[key].accumulated.seen(steps)
            self.of_groups[i] = alike[key].accumulated
        self.leaders, self.counted = list(alike.values()), len(groups)

    def state_dict(self) -> list[list[float]]:
        return [list(astuple(each)) for each in self.of_groups]

    def load_state_dict(self, state: Iterable[Sequence[float]]) -> None:
        """Go on from `state_dict()`. The next step looks for the groups that share what they have seen."""
        self.of_groups = [
            Accumulated(int(t), first, second, power_first, power_second, bool(prepared))
            for t, first, second, power_first, power_second, prepared in state
        ]
        self.counted = 0

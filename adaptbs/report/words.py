"""Reasons of decisions as plain phrases, for people who have not read the documentation."""

from __future__ import annotations

from ..types import COUPLED

#: Phrases by the reason that the history records.
REASONS = {
    "noise scale": "as large as the noise allows",
    "step time": "a larger batch would save no time here",
    "pace": "on its way, step by step",
    "early": "kept small early in the run",
    "max_batch_size": "at the upper limit, max_batch_size",
    "memory": "as large as memory holds",
    "target": "as target= asked",
    "few measurements": "waiting for more measurements",
    "unresolved": "too noisy to tell yet",
    "nothing new": "waiting for a new measurement",
    COUPLED: "held, because the loss couples samples",
    "start": "the start of the run",
}


def in_words(reason: str) -> str:
    """A reason as a phrase. A reason that is not listed, such as a doubt about the loop, is a phrase already."""
    return REASONS.get(reason, reason)


def is_doubt(reason: str) -> bool:
    """True if a decision's reason is that something is not clear, which holds the batch."""
    return reason == COUPLED or reason not in REASONS

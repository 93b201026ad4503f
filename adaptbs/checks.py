"""Checks of arguments, with errors that say what to do."""

from __future__ import annotations

from numbers import Integral, Real


def check_size(name: str, value: object) -> None:
    """Raise unless `value` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={value!r}: it must be an integer of at least 1")
    if int(value) < 1:
        raise ValueError(f"{name}={value!r}: it must be at least 1")


def check_choice(name: str, value: object, choices: tuple[str, ...], *, or_function: bool = False) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices and not (or_function and callable(value)):
        also = " or a function" if or_function else ""
        raise ValueError(f"{name}={value!r}: it must be one of {', '.join(map(repr, choices))}{also}")


def check_share(name: str, value: object, *, or_zero: bool = False) -> None:
    """Raise unless `value` is a number between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: it must be a number between 0 and 1")
    if not (0 < float(value) < 1 or (value == 0 and or_zero)):
        raise ValueError(f"{name}={value!r}: it must lie between 0 and 1" + (" (0: off)" if or_zero else ""))

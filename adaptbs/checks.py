"""Checks of arguments. Their errors name the argument, the rule and the value."""

from __future__ import annotations

from numbers import Integral, Real


def check_size(name: str, value: object) -> None:
    """Raise TypeError unless `value` is an integer, ValueError if it is below 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={value!r}: it must be an integer of at least 1")
    if int(value) < 1:
        raise ValueError(f"{name}={value!r}: it must be at least 1")


def check_choice(name: str, value: object, choices: tuple[str, ...], *, or_function: bool = False) -> None:
    """Raise ValueError unless `value` is one of `choices`, or a function where `or_function` allows one."""
    if value not in choices and not (or_function and callable(value)):
        also = " or a function" if or_function else ""
        raise ValueError(f"{name}={value!r}: it must be one of {', '.join(map(repr, choices))}{also}")


def check_share(name: str, value: object, *, or_zero: bool = False) -> None:
    """Raise TypeError unless `value` is a number, ValueError unless 0 < value < 1. `or_zero` also allows 0."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: it must be a number between 0 and 1")
    if not (0 < float(value) < 1 or (value == 0 and or_zero)):
        raise ValueError(f"{name}={value!r}: it must lie between 0 and 1" + (" (0: off)" if or_zero else ""))

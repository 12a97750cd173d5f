"""Checks of single values that a caller gives, and how messages show them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real

import numpy as np

from adaptc.runtime.errors import RequestError

_MOST_SHOWN = 60  # characters of a value in a message
_MOST_BITS = 256  # of a whole number that is written out


def shown(value: object) -> str:
    """A value as a message shows it: on one line, cut if it is long, whatever its own `repr` does."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:  # Python refuses to write out thousands of digits
        return f"a whole number of {value.bit_length()} bits"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a repr of the caller's may raise anything, and the message matters more
        return type(value).__name__
    # What a terminal or a log cannot encode, such as a lone surrogate, is written as an escape.
    text = text.encode("ascii", "backslashreplace").decode() if not text.isprintable() else text
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."


def check_count(name: str, value: object, most: int | None = None, least: int = 1) -> int:
    """A whole number in a range, also of NumPy; a bool is none.

    Returns:
        The value as an int.

    Raises:
        RequestError: naming the option.
    """
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is None or number < least or (most is not None and number > most):
        needed = f"a whole number from {least}" + ("" if most is None else f" to {most}")
        raise RequestError(f"{name}: {shown(value)}; {needed} is needed")
    return number


def check_number(name: str, value: object, needed: str, low: float, high: float, *, above: bool = False) -> float:
    """A number in a range, also of NumPy; a bool is none, and NaN is in no range.

    Args:
        name: The option.
        value: What the caller gave.
        needed: The range in words.
        low: The lowest value.
        high: The highest value.
        above: Whether `low` itself is outside.

    Returns:
        The value as a float.

    Raises:
        RequestError: naming the option.
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not low <= value <= high or (above and value == low):  # type: ignore[operator]
        raise RequestError(f"{name}: {shown(value)}; {needed} is needed")
    return float(value)  # type: ignore[arg-type]


def check_share(name: str, value: object) -> float:
    """A share, 0 to 1, as a float.

    Raises:
        RequestError: naming the option.
    """
    return check_number(name, value, "a share from 0 to 1", 0, 1)


def check_seconds(name: str, value: object) -> float:
    """A time, above 0 and finite, as a float.

    Raises:
        RequestError: naming the option.
    """
    return check_number(name, value, "a number of seconds above 0", 0, 1e15, above=True)


def check_milliseconds(name: str, value: object) -> float:
    """A time in milliseconds, above 0, as a float; infinity is for ever.

    Raises:
        RequestError: naming the option.
    """
    return check_number(name, value, "more than 0", 0, math.inf, above=True)


def check_flag(name: str, value: object) -> bool:
    """True or False, also of NumPy.

    Raises:
        RequestError: naming the option.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise RequestError(f"{name}: {shown(value)}; True or False is needed")
    return bool(value)


def check_elements(name: str, value: object, needed: str) -> list[object]:
    """The elements of an iterable that is no string.

    Raises:
        RequestError: naming the option: it is something else.
    """
    scalar = getattr(value, "ndim", None) == 0  # an array without axes is iterable in name only
    if scalar or not isinstance(value, Iterable) or isinstance(value, (str, bytes, bytearray)):
        raise RequestError(f"{name}: {shown(value)}; {needed} is needed")
    return list(value)

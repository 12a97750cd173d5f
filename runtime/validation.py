"""Checks of single numbers that a caller gives."""

from __future__ import annotations

from typing import cast

from adaptc.runtime.errors import RequestError


def check_count(name: str, value: object, most: int | None = None) -> None:
    """Refuse what is not a whole number from 1 to `most`.

    Raises:
        RequestError: naming the option.
    """
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not whole or (most is not None and cast("int", value) > most):
        needed = "a whole number from 1" + ("" if most is None else f" to {most}")
        raise RequestError(f"{name}: {value!r}; {needed} is needed")


def check_share(name: str, value: float) -> float:
    """Refuse what is not a share.

    Returns:
        The value as a float, 0 to 1.

    Raises:
        RequestError: naming the option.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise RequestError(f"{name}: {value!r}; a share from 0 to 1 is needed")
    return float(value)

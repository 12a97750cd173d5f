"""What rendering a chat template may use: steps, time and text.

A template comes with a model, so it is a stranger's program. What it may use grows with the request, as
an honest template's work does.
"""

from __future__ import annotations

import time
from types import MappingProxyType
from typing import Any, TypeVar

from adaptc.runtime.errors import RequestError

T = TypeVar("T")

_STEPS = 1_000_000
"""Bodies of loops, calls, filters and operators that run; a request's weight adds to it."""

_SECONDS = 0.5
"""Of the thread's own time, so that a busy machine refuses nothing; every 2^18 of a request's weight add as much."""

_LARGEST = 1 << 20
"""Weight of the heaviest value, the prompt included; 8 times a request's weight adds to it."""

_ALL = 128
"""All values that are made, in weights of the heaviest: adding to a text in a loop makes many long ones."""

_DEPTH = 200
"""Lists within lists. Python writes and compares nested values by recursion, which must not exhaust the stack."""

_BITS = 1 << 16
"""Of the largest whole number."""

_ENTRY = 8
"""Weight of a list's or mapping's entry, by itself: a reference is as large as 8 characters."""


CONTAINERS = (list, tuple, dict, MappingProxyType)
"""Kinds of values that hold others; templates get and make no more."""


def weigh(value: Any, most: float = float("inf")) -> int:
    """The memory and the text that a value can become: its characters, and 8 for each entry.

    A part that is contained twice counts twice, as it does when it is written.

    Args:
        value: Anything; what is no text, bytes, number or container weighs nothing.
        most: The weight at which weighing stops, as the weight of a few lists within lists can be astronomic.

    Raises:
        RequestError: its lists are nested too deep.
    """
    weight = 0
    waiting: list[tuple[Any, int]] = [((value,), 0)]
    while waiting and weight <= most:
        one, depth = waiting.pop()
        if depth > _DEPTH:
            raise RequestError(f"chat: more than {_DEPTH} lists within lists; fewer are right")
        for part in one if isinstance(one, (list, tuple)) else (*one.keys(), *one.values()):
            if isinstance(part, (str, bytes)):
                weight += len(part)
            elif isinstance(part, CONTAINERS):
                weight += _ENTRY * len(part)
                if weight <= most:
                    waiting.append((part, depth + 1))
            elif isinstance(part, int):
                weight += part.bit_length() // 8
    return weight


class Meter:
    """Counts what one rendering uses, and ends it when that is too much.

    Attributes:
        largest: Weight of the heaviest value.
    """

    def __init__(self, weight: int) -> None:
        """Begin.

        Args:
            weight: The request's, see `weigh`.
        """
        self.largest = _LARGEST + 8 * weight
        self._steps = _STEPS + weight
        self._left = _ALL * self.largest
        self._seconds = _SECONDS * (1 + weight / 2**18)
        self._begun = time.thread_time()
        self._next_look = time.monotonic() + self._seconds

    def step(self, made: int = 0) -> None:
        """Count a step, and the weight of what it makes.

        Raises:
            RequestError: it is one too many or too heavy, or too much time has passed.
        """
        self._steps = steps = self._steps - 1
        self._left = left = self._left - made
        if steps < 0 or left < 0 or made > self.largest or time.monotonic() > self._next_look:
            self._look(made)

    def room(self, weight: float) -> None:
        """Refuse a value before it is made.

        Raises:
            RequestError: it would be too heavy.
        """
        if weight > self.largest:
            raise RequestError(f"chat: the model's template makes a value of more than {self.largest:,} characters")

    def made(self, value: T) -> T:
        """Count a step that has made a value.

        Raises:
            RequestError: it is too heavy, or one too many.
        """
        if isinstance(value, (str, bytes)):
            self.step(len(value))
        elif value is None or value is True or value is False:
            self.step()
        elif isinstance(value, CONTAINERS):
            self.step(_ENTRY * len(value) + weigh(value, self.largest))
        elif isinstance(value, int) and value.bit_length() > _BITS:
            raise RequestError(f"chat: the model's template makes a number of more than {_BITS:,} bits")
        else:
            self.step()
        return value

    def _look(self, made: int) -> None:
        self.room(made)
        if self._left < 0:
            raise RequestError(f"chat: the model's template makes more than {_ALL * self.largest:,} characters in all")
        if self._steps < 0:
            raise RequestError(f"chat: the model's template takes more than {_STEPS:,} steps")
        used = time.thread_time() - self._begun
        if used > self._seconds:
            raise RequestError(f"chat: the model's template takes more than {self._seconds:.3g} seconds")
        self._next_look = time.monotonic() + self._seconds - used

"""Timing several things in turns (A B C A B C ...), so that whatever else the machine does falls on all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")


def in_turns(
    measurements: Mapping[K, Callable[[], T]], turns: int, stage: Callable[[int], None] = lambda _: None
) -> dict[K, list[T]]:
    """Run measurements in turns.

    Args:
        measurements: By name, a function that measures once.
        turns: Turns that count; one more before them warms up.
        stage: Called with the number of each turn as it begins; the warm-up is 0.

    Returns:
        By name, what each turn that counts gave.
    """
    results: dict[K, list[T]] = {name: [] for name in measurements}
    for turn in range(turns + 1):
        stage(turn)
        for name, measure in measurements.items():
            result = measure()
            if turn:
                results[name].append(result)
    return results

"""Timing several things in turns (A B C A B C ...), so that whatever else the machine does falls on all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from adaptc.runtime.progress import SILENT, Progress, counted

K = TypeVar("K")
T = TypeVar("T")


def in_turns(measurements: Mapping[K, Callable[[], T]], turns: int, progress: Progress = SILENT) -> dict[K, list[T]]:
    """Run measurements in turns.

    Args:
        measurements: By name, a function that measures once.
        turns: Turns that count; one more before them warms up.
        progress: Told of each turn, the warm-up among them.

    Returns:
        By name, what each turn that counts gave.
    """
    results: dict[K, list[T]] = {name: [] for name in measurements}
    for turn in counted(range(turns + 1), progress):
        for name, measure in measurements.items():
            result = measure()
            if turn:
                results[name].append(result)
    return results

"""Timing several things in turns (A B C A B C ...), so that whatever else the machine does falls on all alike.

A machine's speed drifts, on a shared one by more than what is to be found. So turns are best short, and things are
compared within each turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from adaptc.runtime.progress import SILENT, Progress, counted

K = TypeVar("K")
T = TypeVar("T")

SURE = 3.0
"""Standard deviations of tossing a coin by which turns must agree to be believed; three, as they are asked often."""


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


def in_turns_until(
    clear: Callable[[Mapping[K, list[T]]], bool],
    measurements: Mapping[K, Callable[[], T]],
    turns: int,
    most: int,
    progress: Progress = SILENT,
) -> dict[K, list[T]]:
    """Run measurements in turns, and as many turns again while what all of them gave is not clear.

    Args:
        clear: Whether the results, as this function returns them, need no more turns.
        measurements: By name, a function that measures once; at least one.
        turns: Turns of a round; one more before each warms up.
        most: No round begins after so many turns.
        progress: Told of each turn, from the start again in each round.
    """
    results = in_turns(measurements, turns, progress)
    done = turns
    while done < most and not clear(results):
        for name, again in in_turns(measurements, turns, progress).items():
            results[name] += again
        done += turns
    return results


def agree(signs: Sequence[bool]) -> bool:
    """Whether so many turns say the same that it is no chance; what single ones say may be far off."""
    return abs(2 * sum(signs) - len(signs)) >= SURE * math.sqrt(len(signs))


def paired(steps: Mapping[K, Sequence[Sequence[float]]], base: K) -> dict[K, float]:
    """A time for each thing, of which differences are good even where the times are not.

    Of each turn the least step counts, as other work makes steps longer, never shorter. The others' times are the
    base's plus the median of what they took longer, turn by turn.

    Args:
        steps: By name, the steps of each turn, in seconds; as many turns of each, at least one.
        base: The name of what the others are compared with.
    """
    least = {name: np.array([min(turn) for turn in turns]) for name, turns in steps.items()}
    middle = float(np.median(least[base]))
    return {name: middle + float(np.median(turns - least[base])) for name, turns in least.items()}

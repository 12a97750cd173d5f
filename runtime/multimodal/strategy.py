"""The cheapest way to give a job of n requests an accuracy: which subset for how many of them, in which batches.

::

    minimize    sum over options of cost(option, count)          seconds
    subject to  sum of counts = n,  sum of counts · accuracy >= floor · n

`cost` is the least time for a count in batches of the profiled sizes, which is not linear. Both are solved exactly, by
dynamic programming over the number of requests, and what is kept is every point that no other one beats: the Pareto
list, from the cheapest to the most accurate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adaptc.runtime.errors import RequestError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Option:
    """Something that can be done with a request.

    Attributes:
        name: A subset, `image+text`; or a gate at one of its levels, `gate@3`.
        subset: Modalities of the subset; for a gate, those of its largest.
        accuracy: Expected share of requests it gets right.
        seconds: Of a batch of 1, 2, ... up to the largest batch: float[batch].
        level: Index of the gate's level, or None.
    """

    name: str
    subset: tuple[str, ...]
    accuracy: float
    seconds: tuple[float, ...]
    level: int | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """One way to do a job.

    Attributes:
        seconds: That it takes.
        accuracy: Expected share of requests that are right.
        counts: How many requests each option gets.
    """

    seconds: float
    accuracy: float
    counts: tuple[int, ...]


def batch_seconds(batches: Sequence[int], seconds: Sequence[float]) -> tuple[float, ...]:
    """Seconds of a batch of 1, 2, ... up to the largest that was timed; in between a straight line."""
    sizes = np.arange(1, batches[-1] + 1)
    return tuple(float(s) for s in np.interp(sizes, batches, seconds))


def costs(option: Option, most: int) -> Floats:
    """The least seconds for 0, 1, ... `most` requests in batches of any size up to the option's largest."""
    best = np.zeros(most + 1)
    seconds = np.array(option.seconds)
    for count in range(1, most + 1):
        sizes = np.arange(1, min(count, len(seconds)) + 1)
        best[count] = (seconds[sizes - 1] + best[count - sizes]).min()
    return best


class Strategies:
    """The Pareto lists of every job size up to a largest one.

    Attributes:
        options: What a request can be given.
        most: The largest job.
    """

    def __init__(self, options: Sequence[Option], most: int) -> None:
        """Solve for every size; milliseconds to a second.

        Args:
            options: At least one; those that another one beats at every batch size are never used.
            most: The largest job, from 1.
        """
        self.options = tuple(options)
        self.most = most
        self._fronts = _fronts([(costs(each, most), each.accuracy) for each in options], most)
        self._points: dict[int, list[Point]] = {}

    def front(self, size: int) -> list[Point]:
        """Every way to do a job of `size` requests that no other way beats, the cheapest first.

        Raises:
            RequestError: no such size.
        """
        if not 1 <= size <= self.most:
            raise RequestError(f"job: {size} requests; 1 to {self.most} are right")
        if size not in self._points:
            self._points[size] = [
                Point(float(s), float(r) / size, tuple(map(int, c)))
                for s, r, c in zip(*self._fronts[size], strict=True)
            ]
        return self._points[size]

    def best(self, size: int, floor: float) -> Point:
        """The cheapest way that reaches a floor.

        Raises:
            RequestError: none does; the message says what can be had.
        """
        front = self.front(size)
        for point in front:
            if point.accuracy >= floor - 1e-9:
                return point
        raise RequestError(f"accuracy: {floor:.3f} cannot be reached; at most {front[-1].accuracy:.3f} can")


_Front = tuple[Floats, Floats, Ints]
"""Seconds, expected number right, and counts [points, options] of the points of one job size."""


def _fronts(options: Sequence[tuple[Floats, float]], most: int) -> list[_Front]:
    """Add option after option; for each size keep what is not beaten."""
    none = np.zeros((1, len(options)), np.int64)
    fronts: list[_Front | None] = [(np.zeros(1), np.zeros(1), none)] + [None] * most
    for index, (cost, accuracy) in enumerate(options):
        added: list[_Front | None] = []
        for size in range(most + 1):
            parts = [
                (f[0] + cost[size - before], f[1] + accuracy * (size - before), f[2], size - before)
                for before in range(size + 1)
                if (f := fronts[before]) is not None
            ]
            added.append(_merged(parts, index) if parts else None)
        fronts = added
    return [front for front in fronts if front is not None]


def _merged(parts: list[tuple[Floats, Floats, Ints, int]], index: int) -> _Front:
    seconds = np.concatenate([part[0] for part in parts])
    right = np.concatenate([part[1] for part in parts])
    order = np.lexsort((-right, seconds))
    # A point stays if it is better than every cheaper one; differences below 1e-9 are rounding.
    best = np.maximum.accumulate(np.concatenate([[-1.0], right[order][:-1]]))
    kept = order[right[order] > best + 1e-9]
    starts = np.cumsum([0, *(len(part[0]) for part in parts)])
    owner = np.searchsorted(starts, kept, side="right") - 1
    counts = np.stack([parts[o][2][k - starts[o]] for o, k in zip(owner, kept, strict=True)])
    counts[:, index] += np.array([parts[o][3] for o in owner])
    return seconds[kept], right[kept], counts

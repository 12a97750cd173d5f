"""The cheapest plan that gives a job of n requests an accuracy: which subset for how many, in which batches.

::

    minimize    sum over options of cost(option, count)          seconds
    subject to  sum of counts = n,  sum of counts · accuracy >= floor · n

`cost` is the least time for a count in batches of the profiled sizes, which is not linear. Both are solved exactly, by
dynamic programming over the number of requests. Every plan that no other plan beats is kept: the Pareto front, from the
cheapest plan to the most accurate one.
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
class ModalityOption:
    """One way to process a request: a subset of its modalities, or the modality gate at one of its levels.

    Attributes:
        name: A subset, `image+text`; or the gate at a level, `gate@3`.
        subset: Modalities of the subset; for the gate, those of its largest subset.
        accuracy: Expected share of requests that are processed correctly, 0 to 1.
        seconds: Time of a batch of 1, 2, ... up to the largest batch.
        level: Index of the gate's level, or None.
    """

    name: str
    subset: tuple[str, ...]
    accuracy: float
    seconds: tuple[float, ...]
    level: int | None = None


@dataclass(frozen=True, slots=True)
class JobPlan:
    """A plan for a whole job.

    Attributes:
        seconds: Time that it takes.
        accuracy: Expected share of requests that are processed correctly, 0 to 1.
        counts: The number of requests that each option gets.
    """

    seconds: float
    accuracy: float
    counts: tuple[int, ...]


def batch_seconds(batches: Sequence[int], seconds: Sequence[float]) -> tuple[float, ...]:
    """Seconds of a batch of 1, 2, ... up to the largest that was timed, interpolated in between."""
    sizes = np.arange(1, batches[-1] + 1)
    return tuple(float(s) for s in np.interp(sizes, batches, seconds))


def costs(option: ModalityOption, most: int) -> Floats:
    """The least seconds for 0, 1, ... `most` requests in batches of any size up to the option's largest."""
    best = np.zeros(most + 1)
    seconds = np.array(option.seconds)
    for count in range(1, most + 1):
        sizes = np.arange(1, min(count, len(seconds)) + 1)
        best[count] = (seconds[sizes - 1] + best[count - sizes]).min()
    return best


def seconds_of(option: ModalityOption, rows: int) -> float:
    """The seconds that an option takes for some rows by the profile, see `rows_seconds`."""
    return rows_seconds(option.seconds, rows)


def rows_seconds(seconds: Sequence[float], rows: int) -> float:
    """The seconds of some rows in one batch, or in full batches and a rest.

    Args:
        seconds: Of a batch of 1, 2, ... up to the largest.
        rows: How many, from 0.
    """
    full, rest = divmod(rows, len(seconds))
    return full * seconds[-1] + (seconds[rest - 1] if rest else 0.0)


_FIRST = 64
"""Sizes that are solved at once, in a tenth of a second or two."""


class Strategies:
    """The Pareto fronts of every job size up to a largest one.

    Attributes:
        options: The ways to process a request.
        places: The place of each in `options`, by its name.
        most: The largest number of requests in a job.
    """

    def __init__(self, options: Sequence[ModalityOption], most: int) -> None:
        """Solve for small sizes; larger ones are solved when they are asked for, which takes up to seconds.

        Args:
            options: At least one; an option that another one beats at every batch size is never used.
            most: The largest number of requests in a job, from 1.
        """
        self.options = tuple(options)
        self.places = {option.name: place for place, option in enumerate(self.options)}
        self.most = most
        self._fronts: list[_Front] = []
        self._plans: dict[int, list[JobPlan]] = {}
        self._solve(min(most, _FIRST))

    def arrays(self, size: int) -> _Front:
        """The plans of `front` as arrays: seconds, expected number of correct requests, counts [plans, options].

        Raises:
            RequestError: there is no such size.
        """
        if not 1 <= size <= self.most:
            raise RequestError(f"job: {size} requests; 1 to {self.most} are right")
        if size >= len(self._fronts):
            self._solve(min(self.most, 1 << (size - 1).bit_length()))
        return self._fronts[size]

    def front(self, size: int) -> list[JobPlan]:
        """Every plan for a job of `size` requests that no other plan beats, the cheapest first.

        Raises:
            RequestError: there is no such size.
        """
        if size not in self._plans:
            self._plans[size] = [
                JobPlan(float(s), float(r) / size, tuple(map(int, c)))
                for s, r, c in zip(*self.arrays(size), strict=True)
            ]
        return self._plans[size]

    def best(self, size: int, floor: float) -> JobPlan:
        """The cheapest plan that reaches a floor.

        Raises:
            RequestError: no plan does; the message says what can be reached.
        """
        front = self.front(size)
        for plan in front:
            if plan.accuracy >= floor - 1e-9:
                return plan
        raise RequestError(f"accuracy: {floor:.3f} cannot be reached; at most {front[-1].accuracy:.3f} can")

    def _solve(self, most: int) -> None:
        self._fronts = _fronts([(costs(each, most), each.accuracy) for each in self.options], most)


_Front = tuple[Floats, Floats, Ints]
"""Seconds, expected number of correct requests, and counts [plans, options] of the plans for one job size."""


def _fronts(options: Sequence[tuple[Floats, float]], most: int) -> list[_Front]:
    """Add option after option; for each size keep the plans that no other plan beats."""
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
    # A plan stays if it is more accurate than every cheaper one; differences below 1e-9 are rounding.
    best = np.maximum.accumulate(np.concatenate([[-1.0], right[order][:-1]]))
    kept = order[right[order] > best + 1e-9]
    starts = np.cumsum([0, *(len(part[0]) for part in parts)])
    owner = np.searchsorted(starts, kept, side="right") - 1
    counts = np.stack([parts[o][2][k - starts[o]] for o, k in zip(owner, kept, strict=True)])
    counts[:, index] += np.array([parts[o][3] for o in owner])
    return seconds[kept], right[kept], counts

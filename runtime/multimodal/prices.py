"""Plans of jobs at the prices of here and now: the fronts of a profile, priced by measured times."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adaptc.runtime.multimodal.strategy import JobPlan, ModalityOption, Strategies
from adaptc.runtime.multimodal.times import MeasuredTimes

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Front:
    """The plans of one size that no other one beats at these prices, the cheapest first.

    Attributes:
        seconds: Of each plan, over the machine's pace.
        accuracy: Of each plan, 0 to 1; rising.
        counts: How many requests each option gets, int64[plans, options].
        hulls: Plans from a place on, as `hull` leaves them, by the place.
    """

    seconds: list[float]
    accuracy: list[float]
    counts: npt.NDArray[np.int64]
    hulls: dict[int, list[JobPlan]]


class Prices:
    """Prices plans by what `MeasuredTimes` knows; computed when asked for, kept until they change.

    Attributes:
        times: What was measured.
        unused: How many graphs of an option have not run yet.
    """

    def __init__(self, times: MeasuredTimes, unused: Callable[[ModalityOption], int] = lambda _: 0) -> None:
        """Price by some times.

        Args:
            times: What was measured; its versions are followed.
            unused: How many graphs of an option have not run yet.
        """
        self.times = times
        self.unused = unused
        self._version = times.version
        self._fronts: dict[tuple[Strategies, int], _Front] = {}
        self._costs: dict[Strategies, list[Floats]] = {}

    @property
    def version(self) -> int:
        """Goes up whenever plans may cost something else."""
        return self.times.version

    def plans(self, strategies: Strategies, size: int, floor: float) -> list[JobPlan]:
        """Plans for `size` requests that keep a floor, cheapest first; only those on the convex hull.

        Seconds are over the machine's pace. If no plan keeps the floor, the most accurate one is left.
        """
        if self._version != self.times.version:
            self._version = self.times.version
            self._fronts.clear()
            self._costs.clear()
        key = strategies, size
        front = self._fronts.get(key)
        if front is None:
            front = self._fronts[key] = self._front(strategies, size)
        first = min(bisect_left(front.accuracy, floor - 1e-9), len(front.accuracy) - 1)
        found = front.hulls.get(first)
        if found is None:
            found = front.hulls[first] = [
                JobPlan(front.seconds[each], front.accuracy[each], tuple(front.counts[each].tolist()))
                for each in hull(front.seconds, front.accuracy, first)
            ]
        return found

    def _front(self, strategies: Strategies, size: int) -> _Front:
        _, right, counts = strategies.arrays(size)
        tables = self._costs.get(strategies)
        if tables is None:
            tables = self._costs[strategies] = [self._cost(each, strategies.most) for each in strategies.options]
        seconds = np.sum([table[counts[:, place]] for place, table in enumerate(tables)], 0)
        order = np.lexsort((-right, seconds))
        best = np.maximum.accumulate(np.concatenate([[-1.0], right[order][:-1]]))
        kept = order[right[order] > best + 1e-9]
        return _Front(seconds[kept].tolist(), (right[kept] / size).tolist(), counts[kept], {})

    def _cost(self, option: ModalityOption, most: int) -> Floats:
        """Seconds of 0, 1, ... `most` requests with an option, its first use included."""
        costs = batched_costs(self.times.seconds(option), most)
        costs[1:] += self.times.first_use(self.unused(option)) / self.times.pace
        return costs


def batched_costs(seconds: Sequence[float], most: int) -> Floats:
    """Seconds of 0, 1, ... `most` requests in full batches and a rest."""
    full, rest = np.divmod(np.arange(most + 1), len(seconds))
    costs: Floats = full * seconds[-1] + np.array([0.0, *seconds])[rest]
    return costs


def hull(seconds: Sequence[float], accuracy: Sequence[float], first: int) -> list[int]:
    """Places, from `first` on, at which steps to the cheaper side lose more and more accuracy for a second saved."""
    kept: list[int] = []
    for place in range(first, len(seconds)):
        s, a = seconds[place], accuracy[place]
        while len(kept) > 1:
            last, before = kept[-1], kept[-2]
            steep = (a - accuracy[last]) * max(seconds[last] - seconds[before], 1e-12)
            if steep < (accuracy[last] - accuracy[before]) * max(s - seconds[last], 1e-12):
                break
            kept.pop()
        kept.append(place)
    return kept


def assigned(
    plans: Sequence[Sequence[JobPlan]],
    rows: Sequence[int],
    deadlines: Sequence[float],
    limits: Sequence[float],
    start: float,
    pace: float,
) -> tuple[list[int], int]:
    """Which plan each job of a queue takes; see the scheduler's docstring.

    Args:
        plans: Of each job, the cheapest first, on a convex hull; jobs in the order of their deadlines.
        rows: Requests of each job.
        deadlines: Of each job, in seconds.
        limits: The predicted ends that the deadlines need.
        start: When the first job begins.
        pace: Seconds over those of the plans.

    Returns:
        The place of each job's plan, and the number of steps to cheaper ones.
    """
    hopeless, total = 0, start
    for place, ways in enumerate(plans):
        total += ways[0].seconds * pace
        if total > deadlines[place]:
            hopeless = place + 1
    total, swaps, at = start, 0, [0] * len(plans)
    steps: list[tuple[float, int]] = []

    def offer(place: int) -> None:
        """A step to the next cheaper plan, priced by correct requests lost for a second saved."""
        if at[place]:
            cheap, dear = plans[place][at[place] - 1 : at[place] + 1]
            lost = (dear.accuracy - cheap.accuracy) * rows[place]
            heapq.heappush(steps, (lost / max(dear.seconds - cheap.seconds, 1e-12), place))

    for place, ways in enumerate(plans):
        # Those before the last one that is late whatever is done take their cheapest plans.
        at[place] = 0 if place < hopeless else len(ways) - 1
        total += ways[at[place]].seconds * pace
        offer(place)
        while steps and total > limits[place]:
            _, other = heapq.heappop(steps)
            total -= (plans[other][at[other]].seconds - plans[other][at[other] - 1].seconds) * pace
            at[other] -= 1
            swaps += 1
            offer(other)
    return at, swaps

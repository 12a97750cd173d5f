"""Jobs in the order of their deadlines, each as accurate as time allows; no threads and no clock of its own.

A job is many requests with an accuracy that their average must not fall below, and a deadline. Every job starts at
the most accurate way there is. Where a deadline would be missed, jobs before it go, step by step, to cheaper ways: each
time the step that loses the least accuracy for a second saved, and never below a job's floor. This is worked out anew
whenever a job comes or one is done, so a step is undone as soon as there is time again.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from adaptc.runtime.errors import RequestError
from adaptc.runtime.multimodal.strategy import Option, Point, Strategies

DRIFT = 0.1
"""Where a job ends sooner or later than foreseen by this share of the time all jobs need, all is worked out anew."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer to a job.

    Attributes:
        accepted: Whether it is queued.
        finish: When it will be done, on the schedule's clock, as far as can be told.
        why: A sentence, if it is not.
    """

    accepted: bool
    finish: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests to run together.

    Attributes:
        option: What to do with them.
        rows: (job, index of the request within it).
    """

    option: Option
    rows: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class _Job:
    """A job that is not done."""

    name: int
    size: int
    floor: float
    deadline: float
    strategies: Strategies
    pending: deque[int]
    right: float = 0.0
    running: int = 0
    counts: list[int] = field(default_factory=list)
    known: tuple[int, list[Point]] = (0, [])

    def ways(self) -> list[Point]:
        """Ways to do what is left that keep the floor, cheapest first; only those on the convex hull."""
        left = len(self.pending)
        if self.known[0] != left:
            needed = (self.floor * self.size - self.right) / left
            front = self.strategies.front(left)
            enough = [point for point in front if point.accuracy >= needed - 1e-9] or front[-1:]
            self.known = left, hull(enough)
        return self.known[1]


def hull(points: list[Point]) -> list[Point]:
    """The points at which steps to the cheaper side lose ever more accuracy for a second saved."""
    kept: list[Point] = []
    for point in points:
        while len(kept) > 1 and _slope(kept[-1], point) >= _slope(kept[-2], kept[-1]):
            kept.pop()
        kept.append(point)
    return kept


def _slope(cheap: Point, dear: Point) -> float:
    return (dear.accuracy - cheap.accuracy) / max(dear.seconds - cheap.seconds, 1e-12)


class Schedule:
    """Which requests to run next.

    Attributes:
        swaps: How many steps to cheaper ways the newest assignment took.
    """

    def __init__(self, largest_batch: int) -> None:
        """Start without jobs.

        Args:
            largest_batch: Most requests run together.
        """
        self.swaps = 0
        self._largest = largest_batch
        self._jobs: dict[int, _Job] = {}
        self._finish: dict[int, float] = {}
        self._horizon = 0.0
        self._spent = self._foreseen = 1e-3

    def __len__(self) -> int:
        return len(self._jobs)

    def submit(
        self, job: int, size: int, floor: float, deadline: float, strategies: Strategies, now: float, late: bool = False
    ) -> Admission:
        """Take a job, or say why not.

        Args:
            job: Its number, new.
            size: How many requests, from 1.
            floor: Least average accuracy, 0 to 1.
            deadline: On the schedule's clock; may be infinite.
            strategies: What can be done with its requests.
            now: The clock.
            late: Take it even if its deadline cannot be kept.

        Raises:
            RequestError: it has no requests, or its floor cannot be reached.
        """
        if size < 1:
            raise RequestError("job: no requests; 1 or more are needed")
        strategies.best(size, floor)  # refuses a floor that is out of reach
        self._jobs[job] = _Job(job, size, floor, deadline, strategies, deque(range(size)))
        self._assign(now)
        finish = self._finish[job]
        if finish > deadline and not late:
            del self._jobs[job]
            self._assign(now)
            return Admission(False, finish, f"deadline: {finish - now:.3f} s are needed, {deadline - now:.3f} are left")
        return Admission(True, finish)

    def next(self, now: float) -> Batch | None:
        """The next requests to run: the earliest deadline's, and with them later jobs' that need the same.

        They count as running until `done` or `drop`.
        """
        queue = self._order()
        first = next((job for job in queue if job.pending), None)
        if first is None:
            return None
        if not any(first.counts):
            self._assign(now)
        option = max(range(len(first.counts)), key=lambda i: first.counts[i])
        rows: list[tuple[int, int]] = []
        chosen = first.strategies.options[option]
        for job in queue:
            if job.strategies is first.strategies and len(rows) < self._largest:
                taken = min(job.counts[option] if job.counts else 0, self._largest - len(rows), len(job.pending))
                rows += [(job.name, job.pending.popleft()) for _ in range(taken)]
                if taken:
                    job.counts[option] -= taken
                    job.running += taken
                    job.right += taken * chosen.accuracy
        return Batch(chosen, tuple(rows))

    def done(self, batch: Batch, now: float, seconds: float) -> tuple[int, ...]:
        """Take note of a batch that ran.

        Args:
            batch: From `next`.
            now: The clock.
            seconds: It took, with all that was decided for it; what is foreseen follows how fast the machine is now.

        Returns:
            The jobs that are complete with it.
        """
        self._spent = 0.9 * self._spent + seconds
        self._foreseen = 0.9 * self._foreseen + batch.option.seconds[len(batch.rows) - 1]
        for name, _ in batch.rows:
            if name in self._jobs:
                self._jobs[name].running -= 1
        names = dict.fromkeys(name for name, _ in batch.rows)
        complete = tuple(
            n for n in names if n in self._jobs and not self._jobs[n].pending and not self._jobs[n].running
        )
        early = False
        for name in complete:
            del self._jobs[name]
            early = early or abs(self._finish.pop(name) - now) > DRIFT * self._horizon
        if early:
            self._assign(now)
        return complete

    def drop(self, jobs: Iterable[int], now: float) -> None:
        """Forget jobs, done or not: one that failed, or that nobody waits for."""
        for name in jobs:
            self._jobs.pop(name, None)
        self._assign(now)

    def finish(self, job: int) -> float:
        """When a job will be done, as far as can be told."""
        return self._finish[job]

    def _order(self) -> list[_Job]:
        return sorted(self._jobs.values(), key=lambda job: (job.deadline, job.name))

    def _assign(self, now: float) -> None:
        """Give every job a way; see the module's docstring."""
        self.swaps = 0
        pace = self._spent / self._foreseen
        jobs = [job for job in self._order() if job.pending]
        hopeless = self._hopeless(jobs, now, pace)
        total = now
        at: dict[int, int] = {}
        steps: list[tuple[float, int]] = []
        for place, job in enumerate(jobs):
            ways = job.ways()
            at[job.name] = 0 if place < hopeless else len(ways) - 1
            total += ways[at[job.name]].seconds * pace
            self._push(steps, job, at[job.name])
            while total > job.deadline and steps:
                _, name = heapq.heappop(steps)
                other = self._jobs[name]
                dear, cheap = other.ways()[at[name]], other.ways()[at[name] - 1]
                total -= (dear.seconds - cheap.seconds) * pace
                at[name] -= 1
                self._push(steps, other, at[name])
                self.swaps += 1
        total = now
        for job in jobs:
            way = job.ways()[at[job.name]]
            job.counts = list(way.counts)
            total += way.seconds * pace
            self._finish[job.name] = total
        self._horizon = total - now

    @staticmethod
    def _hopeless(jobs: list[_Job], now: float, pace: float) -> int:
        """How many jobs stand before one that is late even if all of these go the cheapest way, itself included."""
        total, found = now, 0
        for place, job in enumerate(jobs):
            total += job.ways()[0].seconds * pace
            if total > job.deadline:
                found = place + 1
        return found

    @staticmethod
    def _push(steps: list[tuple[float, int]], job: _Job, at: int) -> None:
        """Offer a job's step to the next cheaper way, priced by requests lost for a second saved."""
        ways = job.ways()
        if at > 0:
            heapq.heappush(steps, (_slope(ways[at - 1], ways[at]) * len(job.pending), job.name))

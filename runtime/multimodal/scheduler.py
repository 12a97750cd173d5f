"""The modality scheduler (MOSEL): jobs in the order of their deadlines, each as accurate as time allows.

A job is many requests with a deadline, and with a floor under their average accuracy. Every job starts with its most
accurate plan. Where a deadline would be missed, the jobs up to it step down to cheaper plans: each time the step that
loses the least accuracy for a second saved, and never below a job's floor. All plans are computed anew whenever a job
arrives or ends, so a step is undone as soon as there is time again. The scheduler has no threads and no clock.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from adaptc.runtime.errors import RequestError
from adaptc.runtime.multimodal.strategy import JobPlan, ModalityOption, Strategies

DRIFT = 0.1
"""Plans are computed anew where a job ends this much sooner or later than predicted, as a share of all jobs' time."""


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a job is accepted.

    Attributes:
        accepted: Whether it is queued.
        finish: Predicted time of its end, in seconds on the caller's clock.
        why: The reason if it is refused, else "".
    """

    accepted: bool
    finish: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests to run together.

    Attributes:
        option: How they are processed.
        rows: (job, index of the request within it).
    """

    option: ModalityOption
    rows: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class _Job:
    """A job that has not ended."""

    name: int
    size: int
    floor: float
    deadline: float
    strategies: Strategies
    pending: deque[int]
    correct: float = 0.0
    running: int = 0
    counts: list[int] = field(default_factory=list)
    known: tuple[int, list[JobPlan]] = (0, [])

    def plans(self) -> list[JobPlan]:
        """Plans for the remaining requests that keep the floor, cheapest first; only those on the convex hull."""
        left = len(self.pending)
        if self.known[0] != left:
            needed = (self.floor * self.size - self.correct) / left
            front = self.strategies.front(left)
            enough = [plan for plan in front if plan.accuracy >= needed - 1e-9] or front[-1:]
            self.known = left, hull(enough)
        return self.known[1]


def hull(plans: list[JobPlan]) -> list[JobPlan]:
    """The plans at which steps to the cheaper side lose more and more accuracy for a second saved."""
    kept: list[JobPlan] = []
    for plan in plans:
        while len(kept) > 1 and _slope(kept[-1], plan) >= _slope(kept[-2], kept[-1]):
            kept.pop()
        kept.append(plan)
    return kept


def _slope(cheap: JobPlan, dear: JobPlan) -> float:
    return (dear.accuracy - cheap.accuracy) / max(dear.seconds - cheap.seconds, 1e-12)


class ModalityScheduler:
    """Decides which requests to run next, and on which modalities.

    Attributes:
        swaps: Steps to cheaper plans that the newest assignment took.
    """

    def __init__(self, largest_batch: int) -> None:
        """Start without jobs.

        Args:
            largest_batch: The largest number of requests that run together.
        """
        self.swaps = 0
        self._largest = largest_batch
        self._jobs: dict[int, _Job] = {}
        self._finish: dict[int, float] = {}
        self._horizon = 0.0
        self._spent = self._predicted = 1e-3

    def __len__(self) -> int:
        return len(self._jobs)

    def submit(
        self, job: int, size: int, floor: float, deadline: float, strategies: Strategies, now: float, late: bool = False
    ) -> Admission:
        """Accept a job, or say why not.

        Args:
            job: Its number, which no other job has.
            size: The number of its requests, from 1.
            floor: The lowest acceptable average accuracy, 0 to 1.
            deadline: In seconds on the caller's clock; may be infinite.
            strategies: The plans for jobs like this.
            now: The caller's clock, in seconds.
            late: Whether it is accepted even if its deadline cannot be kept.

        Raises:
            RequestError: the job has no requests, or its floor cannot be reached.
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
        """The next requests to run: those of the earliest deadline, with later jobs' requests of the same option.

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
                    job.correct += taken * chosen.accuracy
        return Batch(chosen, tuple(rows))

    def done(self, batch: Batch, now: float, seconds: float) -> tuple[int, ...]:
        """Record that a batch ran.

        Args:
            batch: From `next`.
            now: The caller's clock, in seconds.
            seconds: Time that the batch took; predictions follow how fast the machine is now.

        Returns:
            The jobs that ended with this batch.
        """
        self._spent = 0.9 * self._spent + seconds
        self._predicted = 0.9 * self._predicted + batch.option.seconds[len(batch.rows) - 1]
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
        """Remove jobs that failed, or whose callers no longer wait."""
        for name in jobs:
            self._jobs.pop(name, None)
        self._assign(now)

    def finish(self, job: int) -> float:
        """Predicted time of a job's end, in seconds on the caller's clock."""
        return self._finish[job]

    def _order(self) -> list[_Job]:
        return sorted(self._jobs.values(), key=lambda job: (job.deadline, job.name))

    def _assign(self, now: float) -> None:
        """Give every job a plan; see the module's docstring."""
        self.swaps = 0
        pace = self._spent / self._predicted
        jobs = [job for job in self._order() if job.pending]
        hopeless = self._hopeless(jobs, now, pace)
        total = now
        at: dict[int, int] = {}
        steps: list[tuple[float, int]] = []
        for place, job in enumerate(jobs):
            plans = job.plans()
            at[job.name] = 0 if place < hopeless else len(plans) - 1
            total += plans[at[job.name]].seconds * pace
            self._push(steps, job, at[job.name])
            while total > job.deadline and steps:
                _, name = heapq.heappop(steps)
                other = self._jobs[name]
                dear, cheap = other.plans()[at[name]], other.plans()[at[name] - 1]
                total -= (dear.seconds - cheap.seconds) * pace
                at[name] -= 1
                self._push(steps, other, at[name])
                self.swaps += 1
        total = now
        for job in jobs:
            plan = job.plans()[at[job.name]]
            job.counts = list(plan.counts)
            total += plan.seconds * pace
            self._finish[job.name] = total
        self._horizon = total - now

    @staticmethod
    def _hopeless(jobs: list[_Job], now: float, pace: float) -> int:
        """The number of jobs up to the last one that is late even if all of them take their cheapest plan."""
        total, count = now, 0
        for place, job in enumerate(jobs):
            total += job.plans()[0].seconds * pace
            if total > job.deadline:
                count = place + 1
        return count

    @staticmethod
    def _push(steps: list[tuple[float, int]], job: _Job, at: int) -> None:
        """Offer a job's step to its next cheaper plan, priced by correct requests lost for a second saved."""
        plans = job.plans()
        if at > 0:
            heapq.heappush(steps, (_slope(plans[at - 1], plans[at]) * len(job.pending), job.name))

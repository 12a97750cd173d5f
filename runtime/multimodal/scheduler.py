"""The modality scheduler (MOSEL): jobs in the order of their deadlines, each as accurate as time allows.

A job is many requests with a deadline, and with a floor under their average accuracy. Every job starts with its most
accurate plan. Where a deadline would be missed, the jobs up to it step down to cheaper plans: each time the step that
loses the least accuracy for a second saved, and never below a job's floor. All plans are computed anew whenever a job
arrives or ends, so a step is undone as soon as there is time again. Seconds are those measured here and now
(`MeasuredTimes`): of batches and of what comes around them, of first uses, and of the batch that is running. The
scheduler has no threads and no clock.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from adaptc.runtime.errors import RequestError
from adaptc.runtime.multimodal.admission import Admission, refusal
from adaptc.runtime.multimodal.prices import Prices, assigned
from adaptc.runtime.multimodal.strategy import JobPlan, ModalityOption, Strategies
from adaptc.runtime.multimodal.times import MeasuredTimes

DRIFT = 0.1
"""Plans are computed anew where a job ends this much sooner or later than predicted, as a share of all jobs' time."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests to run together.

    Attributes:
        option: How they are processed.
        rows: (job, index of the request within it).
        began: When it was decided on, in seconds on the caller's clock.
        first: Graphs that run for the first time with it.
    """

    option: ModalityOption
    rows: tuple[tuple[int, int], ...]
    began: float = 0.0
    first: int = 0


@dataclass(slots=True, eq=False)
class _Job:
    """A job that has not ended; jobs are in the order of their deadlines."""

    name: int
    size: int
    floor: float
    deadline: float
    strategies: Strategies
    pending: deque[int]
    correct: float = 0.0
    running: int = 0
    counts: Sequence[int] = ()
    known: tuple[int, int, list[JobPlan]] = (-1, 0, [])
    foretold: list[tuple[float, float]] = field(default_factory=list)
    sooner: float = math.inf
    admitted: tuple[tuple[float, float], ...] = ()

    def __lt__(self, other: _Job) -> bool:
        return (self.deadline, self.name) < (other.deadline, other.name)

    def plans(self, prices: Prices) -> list[JobPlan]:
        """Plans for the remaining requests that keep the floor, cheapest first; only those on the convex hull."""
        left = len(self.pending)
        if self.known[:2] != (prices.version, left):
            needed = (self.floor * self.size - self.correct) / left
            self.known = prices.version, left, prices.plans(self.strategies, left, needed)
        return self.known[2]


class ModalityScheduler:
    """Decides which requests to run next, and on which modalities.

    Attributes:
        swaps: Steps to cheaper plans that the newest assignment took.
        times: What was measured.
        prices: What plans cost by `times`.
    """

    def __init__(self, largest_batch: int, prices: Prices | None = None, *, careful: bool = True) -> None:
        """Start without jobs.

        Args:
            largest_batch: The largest number of requests that run together.
            prices: What plans cost, by what was measured before; None to begin with what the profile says.
            careful: Plan for the time by which 19 of 20 jobs end, not for the predicted one.
        """
        self.swaps = 0
        self._careful = careful
        self.prices = prices or Prices(MeasuredTimes())
        self.times = self.prices.times
        self._largest = largest_batch
        self._jobs: dict[int, _Job] = {}
        self._queue: list[_Job] = []
        self._finish: dict[int, float] = {}
        self._horizon = 0.0
        self._until = 0.0
        self._stale = False

    def __len__(self) -> int:
        return len(self._jobs)

    def submit(
        self,
        job: int,
        size: int,
        floor: float,
        deadline: float,
        strategies: Strategies,
        now: float,
        came: float | None = None,
    ) -> Admission:
        """Accept a job if it, and all that are accepted, end before their deadlines; or say why not.

        Args:
            job: Its number, which no other job has.
            size: The number of its requests, from 1.
            floor: The lowest acceptable average accuracy, 0 to 1.
            deadline: In seconds on the caller's clock; may be infinite.
            strategies: The plans for jobs like this.
            now: The caller's clock, in seconds.
            came: When the job came, by that clock, if that was earlier; refusals tell times from then.

        Raises:
            RequestError: the job has no requests, or its floor cannot be reached.
        """
        if self._stale:
            self._assign(now)
        before = dict(self._finish)
        self.add(job, size, floor, deadline, strategies)
        self._assign(now)
        finish = self._finish[job]
        latest = self._latest(finish, now)
        pushed = [
            each
            for each in self._queue
            if each.deadline > deadline and each.name in before
            if self._latest(before[each.name], now) <= each.deadline < self._latest(self._finish[each.name], now)
        ]
        if latest <= deadline and not pushed:
            self._push(before)
            self._jobs[job].admitted = ((now, finish),)
            told = now + (finish - now) * self.times.wait
            return Admission(True, told, max(told, latest))
        possible = self._latest(max(self._finish.values()), now)
        self._remove(job)
        self._finish, self._stale = before, True
        return Admission(
            False, finish, latest, refusal(now if came is None else came, deadline, latest, possible, len(pushed))
        )

    def _push(self, before: Mapping[int, float]) -> None:
        """Add what a new job makes others later to what was foretold of them, which errors are measured from."""
        for name, finish in before.items():
            job, later = self._jobs[name], self._finish[name] - finish
            job.foretold = [(made, end + later) for made, end in job.foretold]

    def add(self, job: int, size: int, floor: float, deadline: float, strategies: Strategies) -> None:
        """Accept a job even if its deadline cannot be kept; see `submit`.

        Raises:
            RequestError: the job has no requests, or its floor cannot be reached.
        """
        if size < 1:
            raise RequestError("job: no requests; 1 or more are needed")
        strategies.best(size, floor)  # refuses a floor that is out of reach
        self._jobs[job] = _Job(job, size, floor, deadline, strategies, deque(range(size)))
        insort(self._queue, self._jobs[job])
        self._stale = True

    def next(self, now: float) -> Batch | None:
        """The next requests to run: those of the earliest deadline, with later jobs' requests of the same option.

        They count as running until `done` or `drop`.
        """
        first = next((job for job in self._queue if job.pending), None)
        if first is None:
            return None
        if self._stale or not any(first.counts):
            self._assign(now)
        option = max(range(len(first.counts)), key=first.counts.__getitem__)
        chosen = first.strategies.options[option]
        rows: list[tuple[int, int]] = []
        for job in self._queue:
            place = option if job.strategies is first.strategies else job.strategies.places.get(chosen.name, -1)
            if place < 0 or not job.pending or not job.counts[place]:
                continue
            taken = min(job.counts[place], self._largest - len(rows), len(job.pending))
            rows += [(job.name, job.pending.popleft()) for _ in range(taken)]
            job.counts = [count - taken * (each == place) for each, count in enumerate(job.counts)]
            job.running += taken
            job.correct += taken * chosen.accuracy
            if len(rows) == self._largest:
                break
        unused = self.prices.unused(chosen)
        seconds = self.times.seconds(chosen)[len(rows) - 1] * self.times.pace
        self._until = now + seconds + self.times.first_use(unused)
        return Batch(chosen, tuple(rows), now, unused)

    def done(self, batch: Batch, now: float, seconds: float) -> tuple[int, ...]:
        """Record that a batch ran.

        Args:
            batch: From `next`.
            now: The caller's clock, in seconds.
            seconds: Time that the batch itself took; predictions follow how fast the machine is now.

        Returns:
            The jobs that ended with this batch.
        """
        self.times.record(batch.option, len(batch.rows), seconds, now - batch.began - seconds, batch.first)
        self._until = now
        for name, _ in batch.rows:
            if name in self._jobs:
                self._jobs[name].running -= 1
        names = dict.fromkeys(name for name, _ in batch.rows)
        complete = tuple(
            n for n in names if n in self._jobs and not self._jobs[n].pending and not self._jobs[n].running
        )
        for name in complete:
            self._stale = self._stale or abs(self._finish[name] - now) > DRIFT * self._horizon
            for made, end in self._jobs[name].foretold:
                self.times.record_job(end - made, now - made)
            for made, end in self._jobs[name].admitted:
                self.times.record_wait(end - made, now - made)
            self._remove(name)
        return complete

    def drop(self, jobs: Iterable[int], now: float) -> None:
        """Remove jobs that failed, or whose callers no longer wait."""
        self._until = now
        for name in jobs:
            self._remove(name)
        self._assign(now)

    def finish(self, job: int) -> float:
        """Predicted time of a job's end, in seconds on the caller's clock."""
        return self._finish[job]

    def _remove(self, name: int) -> None:
        job = self._jobs.pop(name, None)
        self._finish.pop(name, None)
        if job is not None:
            self._queue.remove(job)

    def _latest(self, finish: float, now: float) -> float:
        """The time by which 19 of 20 jobs end that are predicted to end at `finish`."""
        return now + (finish - now) * self.times.margin(finish - now)

    def _limit(self, deadline: float, now: float) -> float:
        """The predicted end that a deadline needs."""
        left = deadline - now
        return now + left / self.times.margin(left) if self._careful and left > 0 else deadline

    def _assign(self, now: float) -> None:
        """Give every job a plan; see the module's docstring."""
        self._stale = False
        start = max(now, self._until)
        jobs = [job for job in self._queue if job.pending]
        plans = [job.plans(self.prices) for job in jobs]
        rows, deadlines = [len(job.pending) for job in jobs], [job.deadline for job in jobs]
        limits = [self._limit(deadline, now) for deadline in deadlines]
        at, self.swaps = assigned(plans, rows, deadlines, limits, start, self.times.pace)
        for job, ways, chosen in zip(jobs, plans, at, strict=True):
            job.counts = ways[chosen].counts
        self._predict(jobs, now, start)

    def _predict(self, jobs: Sequence[_Job], now: float, start: float) -> None:
        """Predict when each job ends: options run in full batches, which jobs share in the order of deadlines."""
        totals: dict[str, int] = {}
        used = [[(o, c) for o, c in zip(job.strategies.options, job.counts, strict=True) if c] for job in jobs]
        for uses in used:
            for option, count in uses:
                totals[option.name] = totals.get(option.name, 0) + count
        self._finish = {job.name: start for job in self._queue if not job.pending}
        rows, so_far, units, extra = dict.fromkeys(totals, 0), dict.fromkeys(totals, 0.0), 0.0, 0.0
        pace, largest = self.times.pace, self._largest
        for job, uses in zip(jobs, used, strict=True):
            for option, count in uses:
                if not rows[name := option.name]:
                    extra += self.times.first_use(self.prices.unused(option))
                rows[name] += count
                seconds = self.times.seconds(option)
                full, rest = divmod(rows[name], largest)
                last = min(largest, totals[name] - full * largest)
                now_far = full * seconds[largest - 1] + (seconds[last - 1] if rest else 0.0)
                units, so_far[name] = units + now_far - so_far[name], now_far
            self._finish[job.name] = finish = start + units * pace + extra
            if finish - now < job.sooner:
                # At every magnitude once: the shorter the time, the more a stall counts.
                job.sooner = (finish - now) / 4
                job.foretold.append((now, finish))
        self._horizon = units * pace + extra

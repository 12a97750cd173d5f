"""`adaptc bench --jobs`: the same jobs, at the same times, under three policies on real sessions.

Every batch really runs. Between jobs the clock jumps: waiting is counted, not slept. Deciding is counted like running.

`whole` is the modality-agnostic policy: earliest deadline first and the same batching, but always every modality.
`table` chooses among subsets, `gate` among subsets and settings of the learned gate, `auto` takes table or gate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.multimodal.inputs import ModalInputs
from adaptc.runtime.multimodal.policy import JobPolicy
from adaptc.runtime.multimodal.prices import Prices
from adaptc.runtime.multimodal.scheduler import ModalityScheduler
from adaptc.runtime.multimodal.session import ModalSession
from adaptc.runtime.multimodal.strategy import ModalityOption, seconds_of
from adaptc.runtime.multimodal.times import MeasuredTimes

Ints = npt.NDArray[np.int64]

UNLIKELY = 0.01
"""Jobs count as under their floor if, were all exactly at it, one would do as badly with less than this probability."""


@dataclass(frozen=True, slots=True)
class Load:
    """How jobs come.

    Attributes:
        jobs: How many.
        sizes: Requests of a job: from, to.
        margin: How far floors lie below the whole's accuracy: from, to.
        slack: Deadlines, in multiples of the time the whole takes for the job alone: from, to.
        seed: Seed of everything drawn.
    """

    jobs: int = 120
    sizes: tuple[int, int] = (8, 48)
    margin: tuple[float, float] = (0.005, 0.01)
    slack: tuple[float, float] = (2.0, 8.0)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A job to come.

    Attributes:
        time: When, in seconds.
        requests: ModalInputs of the data, int64[size].
        floor: Least average accuracy.
        slack: Seconds from its coming to its deadline.
    """

    time: float
    requests: Ints
    floor: float
    slack: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A replay under one policy.

    Attributes:
        seconds: From the first job's coming to the last one's end.
        busy: Seconds that something ran or was decided.
        completion: Seconds from coming to end, of each job.
        late: Whether each job missed its deadline.
        right: By job, the number of requests that were right.
        expected: By job, its expected accuracy.
        confidence: For each request that a gate decided, (P(correct), whether it was).
        options: How many requests each option got.
    """

    seconds: float
    busy: float
    completion: tuple[float, ...]
    late: tuple[bool, ...]
    right: tuple[int, ...]
    expected: tuple[float, ...]
    confidence: tuple[tuple[float, bool], ...]
    options: Mapping[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class Rival:
    """A policy that takes part, with all that it has measured so far.

    Attributes:
        policy: Picks the plans of each job.
        prices: What it measured.
        careful: Whether it plans for the time by which 19 of 20 jobs end, as `auto` does; the others are as MOSEL's.
    """

    policy: JobPolicy
    prices: Prices
    careful: bool


def rivals(session: ModalSession, most: int) -> dict[str, Rival]:
    """Every policy that the session's bundle has, the adaptive one last; plans are solved for jobs of up to `most`."""
    every = session.options
    whole = tuple(o for o in every if o.level is None and o.subset == tuple(session.modal.subsets[-1].modalities))
    names = ("table", "gate", "auto") if any(o.level is not None for o in every) else ("table",)
    found = {}
    for name, options, policy in [("whole", whole, "table"), *((each, every, each) for each in names)]:
        prices = Prices(MeasuredTimes(), session.unused)
        found[name] = Rival(JobPolicy(options, policy, most, prices), prices, policy == "auto")
        found[name].policy.solve(most)
    return found


def arrivals(load: Load, rate: float, kind: str, whole: ModalityOption, rows: int, accuracy: float) -> list[Arrival]:
    """Draw jobs.

    Args:
        load: How they are.
        rate: Requests a second, on average; infinite for all at once.
        kind: "poisson", or "bursty": bursts of five times the rate, and quiet between.
        whole: The option with every modality, which deadlines are measured in.
        rows: Rows of the data.
        accuracy: The whole's, which floors are measured from.
    """
    random = np.random.default_rng(load.seed)
    coming, now, mean = [], 0.0, sum(load.sizes) / 2
    for index in range(load.jobs):
        size = int(random.integers(load.sizes[0], load.sizes[1] + 1))
        requests = random.integers(0, rows, size)
        floor = accuracy - float(random.uniform(*load.margin))
        slack = float(random.uniform(*load.slack)) * seconds_of(whole, size)
        gap = float(random.exponential(mean / rate)) if math.isfinite(rate) else 0.0
        if kind == "bursty":
            # Ten jobs at five times the rate, then a pause that brings the average back.
            gap = gap / 5 + (10 * mean / rate * 0.8 if index % 10 == 0 and index and math.isfinite(rate) else 0.0)
        now += gap
        coming.append(Arrival(now, requests, floor, slack))
    return coming


def replay(session: ModalSession, rival: Rival, jobs: Sequence[Arrival], rows: ModalInputs, labels: Ints) -> Outcome:
    """Run jobs under a policy.

    Args:
        session: Runs them; without a cache, or its hits would count.
        rival: The policy, which learns from this.
        jobs: In the order of their coming.
        rows: The data's inputs.
        labels: int64[rows].
    """
    largest = max(len(option.seconds) for option in session.options)
    schedule = ModalityScheduler(largest, rival.prices, careful=rival.careful)
    ends, right = [0.0] * len(jobs), [0] * len(jobs)
    expected = [0.0] * len(jobs)
    confidence: list[tuple[float, bool]] = []
    used: dict[str, int] = {}
    clock = busy = 0.0
    coming = 0
    while coming < len(jobs) or len(schedule):
        began = perf_counter()
        while coming < len(jobs) and jobs[coming].time <= clock:
            job = jobs[coming]
            ways = rival.policy.strategies(len(job.requests), job.floor)
            schedule.add(coming, len(job.requests), job.floor, job.time + job.slack, ways)
            coming += 1
        batch = schedule.next(clock)
        if batch is None:
            clock = jobs[coming].time
            continue
        picked = np.array([jobs[name].requests[row] for name, row in batch.rows])
        some = {name: {each: array[picked] for each, array in rows[name].items()} for name in batch.option.subset}
        ran = perf_counter()
        done = session.execute(batch.option, some)
        ended = perf_counter()
        spent = ended - began
        clock, busy = clock + spent, busy + spent
        used[batch.option.name] = used.get(batch.option.name, 0) + len(picked)
        hits = next(iter(done.outputs.values())).argmax(1) == labels[picked]
        for place, (name, _) in enumerate(batch.rows):
            right[name] += int(hits[place])
            expected[name] += batch.option.accuracy / len(jobs[name].requests)
            if done.confidence is not None:
                confidence.append((done.confidence[place], bool(hits[place])))
        for name in schedule.done(batch, clock, ended - ran):
            ends[name] = clock
    completion = tuple(end - job.time for end, job in zip(ends, jobs, strict=True))
    late = tuple(took > job.slack for took, job in zip(completion, jobs, strict=True))
    return Outcome(clock - jobs[0].time, busy, completion, late, tuple(right), tuple(expected), tuple(confidence), used)


def summary(outcome: Outcome, jobs: Sequence[Arrival]) -> dict[str, Any]:
    """An outcome in figures."""
    sizes = [len(job.requests) for job in jobs]
    realized = [r / n for r, n in zip(outcome.right, sizes, strict=True)]
    floors = [job.floor for job in jobs]
    return {
        "requests_per_second": sum(sizes) / outcome.busy,
        "seconds": outcome.seconds,
        "mean_completion_seconds": float(np.mean(outcome.completion)),
        "p95_completion_seconds": float(np.percentile(outcome.completion, 95)),
        "accuracy": sum(outcome.right) / sum(sizes),
        "expected_accuracy": float(np.dot(outcome.expected, sizes)) / sum(sizes),
        "deadlines_missed": int(sum(outcome.late)),
        "jobs": len(jobs),
        "jobs_under_floor": sum(
            is_under(r, n, f, UNLIKELY / len(jobs)) for r, n, f in zip(outcome.right, sizes, floors, strict=True)
        ),
        "jobs_below_floor_by_count": sum(a < f for a, f in zip(realized, floors, strict=True)),
        "jobs_expected_under_floor": sum(e < f - 1e-6 for e, f in zip(outcome.expected, floors, strict=True)),
        "options": dict(sorted(outcome.options.items())),
    }


def is_under(right: int, size: int, floor: float, unlikely: float) -> bool:
    """Whether so few right answers tell that a job is under its floor: a binomial test.

    A job of 20 requests at a floor of 0.87 gets 17 or fewer right every other time, with any policy that just keeps
    it; what is asked is whether it does worse than that.
    """
    p = min(max(floor, 0.0), 1 - 1e-12)
    tail = sum(math.comb(size, k) * p**k * (1 - p) ** (size - k) for k in range(right + 1))
    return tail < unlikely

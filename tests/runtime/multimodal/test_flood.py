"""More jobs than a machine can do, on a clock of our own: what is accepted keeps its deadline, and its floor."""

from __future__ import annotations

import re

import numpy as np
import pytest

from adaptc.runtime.multimodal.scheduler import ModalityScheduler
from adaptc.runtime.multimodal.strategy import ModalityOption, Strategies

CHEAP = ModalityOption("cheap", ("c",), 0.8, tuple(0.01 + 0.001 * n for n in range(8)))
DEAR = ModalityOption("dear", ("c", "d"), 0.9, tuple(0.02 + 0.01 * n for n in range(8)))
WAYS = Strategies((CHEAP, DEAR), 16)
JOBS = 2000
FLOORS = (0.0, 0.8, 0.85, 0.9)


@pytest.mark.parametrize("slower", [0.5, 1.0, 4.0])
def test_what_is_accepted_ends_in_time(slower: float) -> None:
    """Several times what can be done; the profile is of another machine, batches vary by a third, and some stall."""
    random = np.random.default_rng(1)
    schedule = ModalityScheduler(8)
    right: dict[int, float] = {}
    jobs: dict[int, tuple[int, float, float]] = {}
    ended: dict[int, float] = {}
    predicted: dict[int, tuple[float, float]] = {}
    clock, comes, number, refused = 0.0, 0.0, 0, 0
    while number < JOBS or len(schedule):
        while number < JOBS and comes <= clock:
            size, floor = int(random.integers(1, 17)), float(random.choice(FLOORS))
            slack = float(np.exp(random.uniform(np.log(0.02), np.log(3)))) * slower
            admission = schedule.submit(number, size, floor, comes + slack, WAYS, clock, comes)
            if admission.accepted:
                jobs[number], right[number] = (size, floor, comes + slack), 0.0
                predicted[number] = clock, admission.finish
            else:
                refused += 1
                assert re.search(r"; deadline_ms from \d+ on would do", admission.why)
            number += 1
            comes += float(random.exponential(0.006 * slower))
        batch = schedule.next(clock)
        if batch is None:
            clock = comes
            continue
        stall = 5 if random.random() < 0.02 else 1
        seconds = batch.option.seconds[len(batch.rows) - 1] * slower * float(np.exp(random.normal(0, 0.3))) * stall
        clock += seconds + 0.001 * slower
        for job, _ in batch.rows:
            right[job] += batch.option.accuracy
        ended |= dict.fromkeys(schedule.done(batch, clock, seconds), clock)
    assert refused > JOBS / 2
    assert len(ended) == len(jobs) > JOBS / 10
    assert all(right[job] / size >= floor - 1e-6 for job, (size, floor, _) in jobs.items())
    late = [ended[job] > deadline for job, (_, _, deadline) in jobs.items()]
    ratios = [(ended[job] - made) / (finish - made) for job, (made, finish) in predicted.items()]
    half = len(late) // 2
    # The first half is what stalls and other jobs are learned from.
    assert np.mean(late) <= 0.13
    assert np.mean(late[half:]) <= 0.05
    assert 0.8 <= np.median(ratios[half:]) <= 1.25
    assert np.percentile(ratios[half:], 95) <= 2.2

"""The schedule: deadlines, floors, steps to cheaper ways and back; on a clock of our own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptc.runtime.errors import RequestError
from adaptc.runtime.multimodal.scheduler import Batch, ModalityScheduler
from adaptc.runtime.multimodal.strategy import ModalityOption, Strategies

CHEAP = ModalityOption("cheap", ("c",), 0.8, (1.0, 1.2, 1.4, 1.6))
DEAR = ModalityOption("dear", ("c", "d"), 0.9, (4.0, 8.0, 12.0, 16.0))
WAYS = Strategies((CHEAP, DEAR), 8)


def run(schedule: ModalityScheduler, batch: Batch, now: float) -> float:
    """Run a batch in just the time it was to take; the clock after it."""
    seconds = batch.option.seconds[len(batch.rows) - 1]
    schedule.done(batch, now + seconds, seconds)
    return now + seconds


def test_the_earliest_deadline_comes_first() -> None:
    schedule = ModalityScheduler(4)
    for job, deadline in enumerate((90.0, 30.0, 60.0)):
        assert schedule.submit(job, 1, 0.0, deadline, WAYS, 0.0).accepted
    order, now = [], 0.0
    while (batch := schedule.next(now)) is not None:
        order += [job for job, _ in batch.rows]
        now = run(schedule, batch, now)
    assert order == [1, 2, 0]
    assert len(schedule) == 0


def test_alone_a_job_gets_the_most_accurate_way() -> None:
    schedule = ModalityScheduler(4)
    schedule.submit(0, 4, 0.8, 100.0, WAYS, 0.0)
    batch = schedule.next(0.0)
    assert batch is not None
    assert batch.option is DEAR
    assert schedule.swaps == 0


def test_under_load_jobs_go_cheaper_and_come_back() -> None:
    schedule = ModalityScheduler(4)
    for job in range(4):
        schedule.submit(job, 4, 0.8, 20.0, WAYS, 0.0)
    assert schedule.swaps > 0
    assert max(schedule.finish(job) for job in range(4)) <= 20.0
    schedule.drop((1, 2, 3), 0.0)
    assert schedule.swaps == 0
    batch = schedule.next(0.0)
    assert batch is not None
    assert batch.option is DEAR


def test_a_deadline_that_cannot_be_kept_is_said_at_once() -> None:
    schedule = ModalityScheduler(4)
    answer = schedule.submit(0, 8, 0.9, 10.0, WAYS, 0.0)
    assert not answer.accepted
    assert answer.why == "deadline: 32.000 s are needed, 10.000 are left"
    assert len(schedule) == 0
    assert schedule.submit(1, 8, 0.9, 10.0, WAYS, 0.0, late=True).accepted


@pytest.mark.parametrize(("size", "floor"), [(0, 0.5), (1, 0.95), (9, 0.5)])
def test_impossible_jobs_are_refused_and_nothing_is_lost(size: int, floor: float) -> None:
    schedule = ModalityScheduler(4)
    schedule.submit(0, 2, 0.0, math.inf, WAYS, 0.0)
    with pytest.raises(RequestError, match=r"^(job|accuracy): "):
        schedule.submit(1, size, floor, math.inf, WAYS, 0.0)
    assert len(schedule) == 1
    assert schedule.next(0.0) is not None


def test_requests_of_several_jobs_share_a_batch() -> None:
    schedule = ModalityScheduler(4)
    for job in range(3):
        schedule.submit(job, 1, 0.0, 3.0, WAYS, 0.0, late=True)
    batch = schedule.next(0.0)
    assert batch is not None
    assert batch.option is CHEAP
    assert len(batch.rows) == 3


@settings(max_examples=60, deadline=None)
@given(
    jobs=st.lists(
        st.tuples(st.integers(1, 8), st.floats(0.8, 0.9), st.floats(1, 60), st.floats(0, 3)), min_size=1, max_size=8
    ),
    slow=st.floats(0.5, 3),
)
def test_every_request_runs_once_and_no_floor_is_broken(
    jobs: list[tuple[int, float, float, float]], slow: float
) -> None:
    schedule = ModalityScheduler(4)
    right = dict.fromkeys(range(len(jobs)), 0.0)
    seen: list[tuple[int, int]] = []
    now, coming = 0.0, 0
    while coming < len(jobs) or len(schedule):
        if coming < len(jobs):
            size, floor, slack, gap = jobs[coming]
            now += gap
            schedule.submit(coming, size, floor, now + slack, WAYS, now, late=True)
            coming += 1
        batch = schedule.next(now)
        if batch is None:
            continue
        assert 1 <= len(batch.rows) <= 4
        seconds = batch.option.seconds[len(batch.rows) - 1] * slow
        now += seconds
        seen += batch.rows
        for job, _ in batch.rows:
            right[job] += batch.option.accuracy
        schedule.done(batch, now, seconds)
    assert sorted(seen) == [(job, row) for job, (size, *_) in enumerate(jobs) for row in range(size)]
    for job, (size, floor, *_) in enumerate(jobs):
        assert right[job] / size >= floor - 1e-6

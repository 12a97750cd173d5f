"""The schedule: deadlines, floors, steps to cheaper ways and back; on a clock of our own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptc.runtime.errors import RequestError
from adaptc.runtime.multimodal.prices import Prices
from adaptc.runtime.multimodal.scheduler import Batch, ModalityScheduler
from adaptc.runtime.multimodal.strategy import ModalityOption, Strategies
from adaptc.runtime.multimodal.times import FIRST_USE, MARGIN, MeasuredTimes

CHEAP = ModalityOption("cheap", ("c",), 0.8, (1.0, 1.2, 1.4, 1.6))
DEAR = ModalityOption("dear", ("c", "d"), 0.9, (4.0, 8.0, 12.0, 16.0))
WAYS = Strategies((CHEAP, DEAR), 8)


def run(schedule: ModalityScheduler, batch: Batch, now: float) -> float:
    """Run a batch in just the time it was to take; the clock after it."""
    seconds = batch.option.seconds[len(batch.rows) - 1]
    schedule.done(batch, now + seconds, seconds)
    return now + seconds


def everything(schedule: ModalityScheduler) -> list[tuple[int, int]]:
    """All requests, in the order that they run in."""
    rows: list[tuple[int, int]] = []
    now = 0.0
    while (batch := schedule.next(now)) is not None:
        rows += batch.rows
        now = run(schedule, batch, now)
    return rows


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
        schedule.submit(job, 4, 0.8, 30.0, WAYS, 0.0)
    assert schedule.swaps > 0
    assert max(schedule.finish(job) for job in range(4)) <= 30.0
    schedule.drop((1, 2, 3), 0.0)
    assert schedule.swaps == 0
    batch = schedule.next(0.0)
    assert batch is not None
    assert batch.option is DEAR


def test_a_deadline_that_cannot_be_kept_is_said_at_once() -> None:
    schedule = ModalityScheduler(4)
    answer = schedule.submit(0, 8, 0.9, 10.0, WAYS, 0.0)
    assert not answer.accepted
    needed = 32.0 * MARGIN
    assert answer.finish == pytest.approx(32.0)
    assert answer.latest == pytest.approx(needed)
    assert answer.why == (
        "deadline: 48000 ms are needed, 10000 were given; "
        "deadline_ms from 48000 on would do, and fewer requests or a lower accuracy need less"
    )
    assert len(schedule) == 0
    assert schedule.submit(1, 8, 0.9, needed + 0.001, WAYS, 0.0).accepted


def test_an_accepted_job_is_not_pushed_past_its_deadline() -> None:
    schedule = ModalityScheduler(4)
    assert schedule.submit(0, 8, 0.9, 50.0, WAYS, 0.0).accepted
    answer = schedule.submit(1, 4, 0.9, 49.0, WAYS, 0.0)
    assert not answer.accepted
    assert answer.why.startswith("deadline: with it 1 accepted job would be late; deadline_ms from 72000 on would do")
    assert schedule.finish(0) == pytest.approx(32.0)
    assert schedule.submit(2, 4, 0.9, 72.01, WAYS, 0.0).accepted
    assert [job for job, _ in everything(schedule)] == [0] * 8 + [2] * 4


def test_the_running_batch_counts() -> None:
    schedule = ModalityScheduler(4)
    schedule.submit(0, 4, 0.9, 100.0, WAYS, 0.0)
    assert schedule.next(0.0) is not None
    assert schedule.submit(1, 1, 0.9, 100.0, WAYS, 6.0).finish == pytest.approx(16.0 + 4.0)
    assert schedule.submit(2, 1, 0.9, 21.0, WAYS, 6.0).accepted is False


def test_a_first_use_counts_until_it_was_measured() -> None:
    used: set[str] = set()
    times = MeasuredTimes()
    schedule = ModalityScheduler(4, Prices(times, lambda option: 0 if option.name in used else 3))
    assert schedule.submit(0, 4, 0.9, 100.0, WAYS, 0.0).finish == pytest.approx(16.0 + 3 * FIRST_USE)
    batch = schedule.next(0.0)
    assert batch is not None
    assert batch.first == 3
    schedule.done(batch, 22.0, 22.0)
    assert times.first_use(3) == pytest.approx(6.0)
    assert times.pace == 1.0
    assert schedule.submit(1, 4, 0.9, 200.0, WAYS, 22.0).finish == pytest.approx(22.0 + 16.0 + 6.0)
    used.add("dear")
    assert schedule.submit(2, 4, 0.9, 300.0, WAYS, 22.0).finish == pytest.approx(22.0 + 32.0)


def test_jobs_that_share_batches_are_predicted_so() -> None:
    schedule = ModalityScheduler(4)
    ends = [schedule.submit(job, 1, 0.9, 1000.0 + job, WAYS, 0.0).finish for job in range(6)]
    assert ends == pytest.approx([4.0, 8.0, 12.0, 16.0, 20.0, 24.0])
    cheap = Strategies((CHEAP,), 8)
    schedule = ModalityScheduler(4)
    ends = [schedule.submit(job, 1, 0.0, 1000.0 + job, cheap, 0.0).finish for job in range(6)]
    assert ends == pytest.approx([1.0, 1.2, 1.4, 1.6, 2.6, 2.8])
    now = 0.0
    actual: dict[int, float] = {}
    while (batch := schedule.next(now)) is not None:
        seconds = batch.option.seconds[len(batch.rows) - 1]
        now += seconds
        actual |= dict.fromkeys(schedule.done(batch, now, seconds), now)
    assert list(actual.values()) == pytest.approx([1.6] * 4 + [2.8] * 2)


def test_table_and_gate_share_batches() -> None:
    schedule = ModalityScheduler(4)
    schedule.submit(0, 2, 0.9, 100.0, WAYS, 0.0)
    schedule.submit(1, 2, 0.9, 100.0, Strategies((DEAR,), 8), 0.0)
    batch = schedule.next(0.0)
    assert batch is not None
    assert batch.rows == ((0, 0), (0, 1), (1, 0), (1, 1))


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
        schedule.add(job, 1, 0.0, 3.0, WAYS)
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
            schedule.add(coming, size, floor, now + slack, WAYS)
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

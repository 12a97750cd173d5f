"""What is learned from batches and jobs: paces, what sets options apart, stalls, first uses, margins."""

from __future__ import annotations

import math

import numpy as np
import pytest

from adaptc.runtime.multimodal.prices import Prices
from adaptc.runtime.multimodal.strategy import ModalityOption, Strategies
from adaptc.runtime.multimodal.times import FIRST_USE, MARGIN, MeasuredTimes

CHEAP = ModalityOption("cheap", ("c",), 0.8, (1.0, 1.2, 1.4, 1.6))
DEAR = ModalityOption("dear", ("c", "d"), 0.9, (4.0, 8.0, 12.0, 16.0))


def expected(times: MeasuredTimes, option: ModalityOption, rows: int) -> float:
    return times.seconds(option)[rows - 1] * times.pace


def test_without_measurements_the_profile_holds() -> None:
    times = MeasuredTimes()
    assert times.seconds(DEAR) == DEAR.seconds
    assert (times.pace, times.overhead, times.first_use(2)) == (1.0, 0.0, 2 * FIRST_USE)


def test_a_slower_machine_is_learned_for_options_that_never_ran_too() -> None:
    times = MeasuredTimes()
    for _ in range(40):
        times.record(CHEAP, 4, 3 * 1.6, 0.0)
    assert expected(times, CHEAP, 4) == pytest.approx(4.8, rel=0.05)
    assert expected(times, DEAR, 4) == pytest.approx(48.0, rel=0.5)


def test_options_and_sizes_are_told_apart() -> None:
    times = MeasuredTimes()
    for _ in range(150):
        times.record(CHEAP, 4, 1.6, 0.0)
        times.record(DEAR, 4, 32.0, 0.0)
        times.record(DEAR, 1, 4.0, 0.0)
    assert expected(times, DEAR, 4) / expected(times, CHEAP, 4) == pytest.approx(20, rel=0.25)
    assert expected(times, DEAR, 4) / expected(times, DEAR, 1) == pytest.approx(8, rel=0.35)
    assert times.apart()["dear"] > 1.1 * times.apart()["cheap"]


def test_a_stall_moves_little() -> None:
    times = MeasuredTimes()
    for _ in range(50):
        times.record(CHEAP, 4, 1.6, 0.1)
    before = expected(times, CHEAP, 4)
    times.record(CHEAP, 4, 1600.0, 500.0)
    assert expected(times, CHEAP, 4) < before * 1.4  # of a thousand times
    assert times.overhead < 0.15


def test_what_did_not_run_for_long_is_forgotten() -> None:
    times = MeasuredTimes()
    for _ in range(60):
        times.record(DEAR, 4, 48.0, 0.0)
        times.record(CHEAP, 4, 1.6, 0.0)
    apart = math.log(times.apart()["dear"])
    assert apart > 0.2
    for _ in range(800):
        times.record(CHEAP, 4, 1.6, 0.0)
    assert math.log(times.apart()["dear"]) < 0.3 * apart


def test_prices_stay_until_what_was_learned_has_moved_away() -> None:
    times = MeasuredTimes()
    random = np.random.default_rng(0)
    for _ in range(500):
        times.record(DEAR, 4, 16.0 * float(np.exp(random.normal(0, 0.1))), 0.0)
    assert times.version == 0
    for _ in range(500):
        times.record(DEAR, 4, 48.0, 0.0)
        times.record(CHEAP, 4, 1.6, 0.0)
    assert 1 <= times.version <= 4


def test_a_first_use_is_measured_and_not_taken_for_the_pace() -> None:
    times = MeasuredTimes()
    for seconds in (16.9, 16.3, 99.0):
        times.record(DEAR, 4, seconds, 0.0, first=3)
    assert times.first_use(1) == pytest.approx(0.3)
    assert (times.pace, times.version) == (1.0, 3)


def test_a_margin_is_what_19_of_20_jobs_of_its_magnitude_needed() -> None:
    times = MeasuredTimes()
    assert times.margin(0.01) == MARGIN
    for ratio in np.linspace(0.5, 2.5, 41):
        times.record_job(1.0, float(ratio))
    assert times.margin(1.0) == pytest.approx(2.4)
    assert times.margin(100.0) == MARGIN
    assert times.margin(math.inf) == MARGIN
    for _ in range(64):
        times.record_job(100.0, 1.0)
        times.record_job(0.01, 50.0)
    assert times.margin(100.0) == 1.0
    assert times.margin(0.01) == 6.0


def test_plans_follow_the_prices() -> None:
    times = MeasuredTimes()
    ways, prices = Strategies((CHEAP, DEAR), 8), Prices(times)
    assert [plan.seconds for plan in prices.plans(ways, 4, 0.0)] == pytest.approx([1.6, 16.0])
    assert prices.plans(ways, 4, 0.9)[0].counts == (0, 4)
    for _ in range(300):
        times.record(CHEAP, 4, 160.0, 0.0)
        times.record(DEAR, 4, 16.0, 0.0)
    assert [plan.counts for plan in prices.plans(ways, 4, 0.0)] == [(0, 4)]

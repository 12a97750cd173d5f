"""What steps cost: measured at first, then as they are, and a hiccup is forgotten."""

from __future__ import annotations

import pytest

from adaptc.runtime.speculation.step_costs import StepCosts


def test_a_size_that_is_not_known_costs_what_the_next_larger_one_does() -> None:
    costs = StepCosts({1: 1.0, 4: 2.0, 8: 3.0})
    assert [costs.reading(size) for size in (1, 2, 4, 5, 8, 9)] == [1.0, 2.0, 2.0, 3.0, 3.0, 3.0]


def test_steps_of_several_sequences_are_not_known_before_one_was_seen() -> None:
    costs = StepCosts({1: 1.0, 4: 2.0})
    assert (costs.plain(1), costs.plain(3)) == (1.0, None)
    costs.note_plain(3, 5.0)
    assert costs.plain(3) == 5.0


def test_means_follow_what_is_seen() -> None:
    costs = StepCosts({1: 1.0, 4: 2.0})
    for _ in range(50):
        costs.note_reading(4, 3.0)
        costs.note_plain(1, 2.0)
    assert costs.reading(4) == pytest.approx(3.0, rel=0.02)
    assert costs.reading(1) == costs.plain(1) == pytest.approx(2.0, rel=0.02)


def test_one_slow_run_counts_little() -> None:
    costs = StepCosts({1: 1.0, 4: 2.0})
    costs.note_reading(4, 1000.0)
    costs.note_plain(1, 1000.0)
    assert costs.reading(4) < 3
    assert costs.reading(1) < 1.5


def test_what_was_dear_once_is_tried_again() -> None:
    """Drafts that do not pay are not verified, so nothing else would show that they pay again."""
    costs = StepCosts({1: 1.0, 4: 2.0})
    for _ in range(100):
        costs.note_reading(4, 50.0)
    assert costs.reading(4) > 40
    for _ in range(3000):
        costs.note_plain(1, 1.0)
    assert costs.reading(4) == pytest.approx(2.0, rel=0.1)

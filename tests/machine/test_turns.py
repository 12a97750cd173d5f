"""Turns: as many as it takes until they agree, and what is compared within each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from adaptc.machine.turns import agree, in_turns_until, paired


def test_turns_go_on_until_what_they_gave_is_clear() -> None:
    asked: list[str] = []
    counts = {"a": 0, "b": 0}

    def measure(name: str) -> int:
        asked.append(name)
        counts[name] += 1
        return counts[name]

    def clear(results: Mapping[str, list[int]]) -> bool:
        return len(results["a"]) >= 5

    found = in_turns_until(clear, {"a": lambda: measure("a"), "b": lambda: measure("b")}, 2, 100)
    assert found == {name: [2, 3, 5, 6, 8, 9] for name in "ab"}, "each round's first turn warms up"
    assert asked == ["a", "b"] * 9


def test_turns_that_never_get_clear_end() -> None:
    found = in_turns_until(lambda _: False, {"a": lambda: 1.0}, 4, 12)
    assert len(found["a"]) == 12
    found = in_turns_until(lambda _: True, {"a": lambda: 1.0}, 4, 12)
    assert len(found["a"]) == 4


@pytest.mark.parametrize(
    ("yes", "turns", "sure"), [(16, 16, True), (14, 16, True), (13, 16, False), (2, 16, True), (40, 64, False)]
)
def test_turns_agree_if_it_is_no_chance(yes: int, turns: int, sure: bool) -> None:
    assert agree([True] * yes + [False] * (turns - yes)) is sure


def test_a_machine_that_gets_slower_and_is_disturbed_changes_no_difference() -> None:
    """One more millisecond, on a machine whose steps take 10 ms at first and 17 in the end."""
    drift = np.linspace(10e-3, 17e-3, 8)
    dense = [[base + 4e-3, base] for base in drift]
    run = [[base + 1e-3, base + 1e-3] for base in drift + 0.1e-3]
    run[3] = [90e-3, 90e-3]
    found = paired({"run": run, "dense": dense}, "dense")
    assert found["dense"] == pytest.approx(13.5e-3)
    assert found["run"] - found["dense"] == pytest.approx(1.1e-3)

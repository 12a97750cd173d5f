"""Many random clients at once: right answers, nonsense, and clients that leave."""

from __future__ import annotations

from pathlib import Path

from tests.attacks.clients import attack


def test_random_clients_get_their_answers_and_leave_nothing_behind(bundle: Path) -> None:
    report = attack(bundle, count=1000, seed=1, at_once=16, drift=None)
    assert report.faults == [], str(report)
    right = sum(count for outcome, count in report.outcomes.items() if outcome.endswith(": right"))
    assert right > 300

"""Table or gate: the rehearsal, and changes of mind where measured times part from the known ones."""

from __future__ import annotations

import pytest

from adaptc.runtime.errors import RequestError
from adaptc.runtime.multimodal.policy import PATIENCE, JobPolicy, policy_options
from adaptc.runtime.multimodal.prices import Prices
from adaptc.runtime.multimodal.strategy import ModalityOption
from adaptc.runtime.multimodal.times import MeasuredTimes

CHEAP = ModalityOption("cheap", ("c",), 0.8, (0.01, 0.012, 0.014, 0.016))
WHOLE = ModalityOption("whole", ("c", "d"), 0.9, (0.04, 0.08, 0.12, 0.16))
QUICK_GATE = ModalityOption("gate@0", ("c", "d"), 0.9, (0.02, 0.024, 0.028, 0.032), 0)
SLOW_GATE = ModalityOption("gate@0", ("c", "d"), 0.9, (0.04, 0.078, 0.118, 0.158), 0)


def policy_of(gate: ModalityOption, policy: str = "auto") -> tuple[JobPolicy, MeasuredTimes]:
    times = MeasuredTimes()
    return JobPolicy((CHEAP, WHOLE, gate), policy, 48, Prices(times)), times


def measure(times: MeasuredTimes, policy: JobPolicy, slower: dict[str, float], jobs: int) -> None:
    """Jobs come, and batches take longer than the profile says."""
    for _ in range(jobs):
        ways = policy.strategies(8, 0.89)
        for option in ways.options:
            times.record(option, 4, option.seconds[3] * slower.get(option.name, 1.0), 0.0)


def test_a_rehearsal_takes_the_gate_only_if_it_is_clearly_quicker() -> None:
    assert policy_of(QUICK_GATE)[0].chosen == "gate"
    assert policy_of(SLOW_GATE)[0].chosen == "table"


def test_a_gate_that_turns_out_slow_is_left() -> None:
    policy, times = policy_of(QUICK_GATE)
    measure(times, policy, {}, 3 * PATIENCE)
    assert (policy.chosen, policy.changes) == ("gate", 0)
    measure(times, policy, {"gate@0": 12.0}, 5 * PATIENCE)
    assert (policy.chosen, policy.changes) == ("table", 1)
    assert [option.name for option in policy.strategies(8, 0.89).options] == ["cheap", "whole"]


def test_the_gate_is_taken_where_the_table_turns_out_slow() -> None:
    policy, times = policy_of(SLOW_GATE)
    measure(times, policy, {"whole": 6.0}, 5 * PATIENCE)
    assert policy.chosen == "gate"


def test_minds_are_not_changed_to_and_fro() -> None:
    policy, times = policy_of(QUICK_GATE)
    for _ in range(8):
        measure(times, policy, {"gate@0": 12.0}, PATIENCE)
        measure(times, policy, {"whole": 4.0}, PATIENCE)
    assert 1 <= policy.changes <= 4


@pytest.mark.parametrize(("policy", "names"), [("table", ["cheap", "whole"]), ("gate", ["cheap", "whole", "gate@0"])])
def test_a_policy_that_is_asked_for_stays(policy: str, names: list[str]) -> None:
    made, times = policy_of(QUICK_GATE, policy)
    measure(times, made, {"gate@0": 12.0, "whole": 5.0}, 3 * PATIENCE)
    assert [option.name for option in made.strategies(4, 0.8).options] == names


def test_wrong_policies_are_refused() -> None:
    with pytest.raises(RequestError, match=r"^policy: no 'fast'; there are: auto, table, gate$"):
        policy_options((CHEAP, WHOLE), "fast")
    with pytest.raises(
        RequestError, match=r"^policy: gate: this bundle has no modality gate; table and auto are right$"
    ):
        policy_options((CHEAP, WHOLE), "gate")
    assert policy_options((CHEAP, WHOLE), "auto") == (CHEAP, WHOLE)

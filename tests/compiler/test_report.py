"""What is said of a compile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from adaptc.compiler.report import facts, report_html
from adaptc.runtime.bundle.gate_verdict import GateDecision, GateVerdict, Payoff
from tests.models import gated_bundle

DECISIONS = (
    GateDecision(0, 0.4, 0, "kept: it skips 40 %"),
    GateDecision(1, 0.4, 0, "grouped"),
    GateDecision(2, 0.0, None, "removed: it never skips"),
)


def test_gates_that_were_judged_one_by_one_are_counted_or_listed(tmp_path: Path) -> None:
    manifest = gated_bundle.write(tmp_path / "bundle").manifest
    verdict = GateVerdict(Payoff(1e-3, 1.1e-3, 0.9e-3, 3), True, "they pay", DECISIONS)
    judged = replace(manifest, gate_verdicts={"lm": verdict})
    listed = dict(facts(judged))
    assert [listed[f"gate of layer {each.layer}"] for each in DECISIONS] == [each.why for each in DECISIONS]
    counted = dict(facts(judged, every_gate=False))
    assert counted["each gate of lm"].startswith("1 decide for themselves, 1 follow a neighbour's gate, 1 were removed")
    assert not [name for name in counted if name.startswith("gate of layer")]
    assert "removed: it never skips" in report_html("tiny", judged)

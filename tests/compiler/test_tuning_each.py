"""Gates judged one by one: kept, grouped or removed; and how many rows of a step still gain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from adaptc.compiler import tuning as pays
from adaptc.compiler.tuning import paying
from adaptc.compiler.tuning_each import Ran, decide
from adaptc.passes.skip_ffn.branch import branched, conditionals
from adaptc.passes.skip_ffn.skips import grouped, skips
from adaptc.runtime.bundle.gate_verdict import Payoff, RowTimes
from adaptc.runtime.bundle.skip_gates import SkipGates
from tests.models import gated_bundle, skipping, tiny
from tests.passes.skip_ffn.test_branch import SKIP, step

GATES = SkipGates("learned", skipping.GATED, 3, 4, "any", ((0.0, -np.inf), (0.1, -0.4), (0.5, 0.6)))
IDS = np.random.default_rng(5).integers(0, tiny.VOCAB, 400)


def ran(*skips: str) -> Ran:
    """A column for each gate, of tokens that skip (x) or run (.)."""
    found: Ran = np.array([[sign == "." for sign in column] for column in skips], np.bool_).transpose()
    return found


def test_a_gate_is_kept_if_it_skips_often_enough() -> None:
    found = decide((3, 7), ran("xxxxx.....", "x........."), cost=10e-6, branch=2e-6, gain=40e-6)
    assert [each.leader for each in found] == [3, None]
    assert found[0].why == "kept: skips 50% of tokens, which saves 20.0 µs a token and costs 10.0 µs"
    assert found[1].why == "removed: skips 10% of tokens, which saves 4.0 µs a token and costs 10.0 µs"


def test_neighbours_that_say_the_same_pay_together() -> None:
    often, alike, other = "xxx.......", "xxx.......", ".......xxx"
    found = decide((1, 2, 3), ran(often, alike, alike), cost=10e-6, branch=2e-6, gain=30e-6)
    assert [each.leader for each in found] == [1, 1, 1], "9 < 10 each, but 27 > 10 + 2 + 2"
    assert "decided by the gate of layer 1" in found[2].why
    found = decide((1, 2, 3), ran(often, other, other), cost=10e-6, branch=2e-6, gain=30e-6)
    assert [each.leader for each in found] == [None, 2, 2], "the first says something else"
    found = decide((1, 2, 3), ran(often, alike, alike), cost=10e-6, branch=9e-6, gain=30e-6)
    assert [each.leader for each in found] == [None] * 3, "27 < 10 + 9 + 9"


def test_grouped_blocks_follow_the_first_gate() -> None:
    before = skipping.onnx(skipping.lowered("llama"))
    whole, graph = branched(before), branched(grouped(before, (0, 0)))
    graph.verify()
    assert len(conditionals(graph)) == 2
    assert len(conditionals(whole)) == 2
    assert sum(node.op_type == "ReduceMax" for node in graph.model.graph) == 1
    weights = set(whole.model.graph.initializers) - set(graph.model.graph.initializers)
    assert any(name.startswith("model.layers.2.skip.gate") for name in weights)
    seen = set()
    for seed in range(12):
        ids, level = tiny.feeds(1, 1, seed)["input_ids"], np.array([[(seed % 3 - 1) * 0.4]], np.float32)
        apart, together = (step(each, ids, level)[1].tolist() for each in (whole, graph))
        assert together == [apart[0]] * 2
        seen.add(tuple(apart))
    assert len(seen) > 2, "or the gates always said the same"
    assert step(graph, tiny.feeds(1, 1)["input_ids"], np.array([[SKIP]]))[1].tolist() == [False, False]


@pytest.mark.parametrize(("gain", "left"), [(1.0, (1, 2)), (1e-9, ())])
def test_what_is_left_is_measured_again(gain: float, left: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    program = replace(gated_bundle.program(gated=True, emitted=False), gates={"lm": GATES})
    times = Payoff(1e-3, 1e-3 + 2e-6, 1e-3 - gain * 1e-3, 2, 1e-3 + 1e-6)
    monkeypatch.setattr(pays, "payoff", lambda *_: times)
    after, verdicts = paying(program, {"lm": IDS})
    assert tuple(each.leader for each in verdicts["lm"].each if each.leader is not None) == left
    assert set(after.gates) == ({"lm"} if left else set())
    assert len(verdicts["lm"].each) in (0, 2)


def test_a_gate_that_hardly_skips_is_removed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    program = replace(gated_bundle.program(gated=True, emitted=False), gates={"lm": GATES})
    monkeypatch.setattr(pays, "payoff", lambda *_: Payoff(1e-3, 1.02e-3, 0.9e-3, 2))
    monkeypatch.setattr(pays, "stepwise", lambda *_: ran("xxxxxxxx..", "x........."))
    after, verdicts = paying(program, {"lm": IDS})
    gates = after.gates["lm"]
    assert gates.layers == (1,)
    assert [each.leader for each in verdicts["lm"].each] == [1, None]
    assert len(skips(skipping.onnx(after).model.graph)) == 1
    shares = [share for share, _ in gates.thresholds]
    assert shares == sorted(shares)
    assert shares[0] == 0 < shares[-1] <= 1 / 3


def test_rows_of_a_step_that_gain_nothing_run_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    program = replace(gated_bundle.program(gated=True, emitted=False), gates={"lm": GATES})
    monkeypatch.setattr(pays, "payoff", lambda *_: Payoff(1e-3, 1.001e-3, 0.5e-3, 2))
    slow = {1: 0.5, 2: 0.9, 4: 1.2, 8: 1.3}
    monkeypatch.setattr(pays, "_timed", lambda _, level, rows=1: lambda: [slow[rows] if level > -np.inf else 1.0])
    after, verdicts = paying(program, batch=8)
    assert after.gates["lm"].rows == 2
    assert verdicts["lm"].rows == (RowTimes(2, 0.9, 1.0), RowTimes(4, 1.2, 1.0))
    assert paying(program, batch=1)[0].gates["lm"].rows == GATES.rows

"""Gates judged one by one: kept, grouped or removed; and how many rows of a step still gain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from adaptc.compiler import tuning as pays
from adaptc.compiler.tuning import paying
from adaptc.compiler.tuning_each import Ran, decide, with_fewer_gates
from adaptc.passes.skip_ffn.branch import branched
from adaptc.passes.skip_ffn.sides import sides
from adaptc.passes.skip_ffn.skips import grouped, skips
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.bundle.gate_verdict import GateVerdict, Payoff, RowTimes
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.model.budget import DENSE
from adaptc.runtime.progress import SILENT
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
    assert len(sides(graph)) == 2
    assert len(sides(whole)) == 2
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
    assert verdicts["lm"].rows == (RowTimes(1, 0.5, 1.0), RowTimes(2, 0.9, 1.0), RowTimes(4, 1.2, 1.0))
    assert paying(program, batch=1)[0].gates["lm"].rows == GATES.rows


@pytest.mark.parametrize(
    ("apart", "together", "batch", "policy", "rows"),
    [
        ({1: 0.9, 2: 0.8, 4: 0.8}, {1: 0.9, 2: 0.9, 4: 0.99}, 4, "rows", 1024),
        ({1: 0.9, 2: 0.8, 4: 1.1}, {1: 0.9, 2: 0.9, 4: 1.0}, 4, "rows", 1024),
        ({1: 0.9, 2: 0.8, 4: 1.2}, {1: 0.9, 2: 0.9, 4: 1.2}, 4, "rows", 2),
        ({1: 0.9, 2: 0.9, 4: 0.9}, {1: 0.9, 2: 0.8, 4: 0.8}, 4, "any", 4),
        ({1: 0.9, 2: 1.1, 4: 1.2}, {1: 0.9, 2: 0.9, 4: 1.0}, 4, "any", 2),
        ({1: 0.9}, {1: 0.86}, 1, "any", 1024),
        ({1: 0.9}, {1: 0.89}, 1, "rows", 1024),
    ],
    ids=[
        "quicker",
        "hardly slower",
        "slower with four",
        "together is quicker",
        "and for few only",
        "alone",
        "alone, nearly",
    ],
)
def test_rows_decide_apart_unless_that_is_slower(
    apart: dict[int, float],
    together: dict[int, float],
    batch: int,
    policy: str,
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock is fixed, and tells the forms of the graph apart by the shape of what they say ran."""
    program = replace(gated_bundle.program(gated=True, emitted=False), gates={"lm": replace(GATES, batch="auto")})
    monkeypatch.setattr(pays, "payoff", lambda *_: Payoff(1e-3, 1.001e-3, 0.5e-3, 2))

    def timed(decoder: HostDecoder, threshold: float, rows: int = 1) -> Callable[[], list[float]]:
        if decoder.gates is None:
            assert threshold == -np.inf
            return lambda: [1.0]
        return lambda: [{"rows": apart, "any": together}[decoder.gates.batch][rows]]  # type: ignore[union-attr]

    monkeypatch.setattr(pays, "_timed", timed)
    after, verdicts = paying(program, batch=batch)
    assert after.gates["lm"] == replace(GATES, batch=policy, rows=rows)
    assert verdicts["lm"].rows == tuple(RowTimes(n, together[n], 1.0, apart[n]) for n in apart)


def test_steps_of_several_rows_are_timed_on_both_forms() -> None:
    program = replace(gated_bundle.program(gated=True, emitted=False), gates={"lm": replace(GATES, batch="auto")})
    gates, verdict = pays._by_rows(
        skipping.onnx(program),
        gated_bundle.DECODER,
        program.gates["lm"],
        GateVerdict(Payoff(1.0, 1.0, 1.0, 2), True, ""),
        3,
        SILENT,
    )
    assert gates.batch in ("rows", "any")
    assert [each.rows for each in verdict.rows] == [1, 2, 3]
    assert all(min(each.adaptive, each.apart, each.dense) > 0 for each in verdict.rows)


@pytest.mark.parametrize("policy", ["off", "any", "group", "rows"])
def test_a_policy_that_was_asked_for_stays(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = replace(gated_bundle.program(gated=True, emitted=False), gates={"lm": replace(GATES, batch=policy)})
    monkeypatch.setattr(pays, "payoff", lambda *_: Payoff(1e-3, 1.001e-3, 0.5e-3, 2))
    monkeypatch.setattr(pays, "_timed", lambda _, level, rows=1: lambda: [0.5 if level > -np.inf else 1.0])
    after, verdicts = paying(program, batch=2)
    assert after.gates["lm"].batch == policy
    assert [each.rows for each in verdicts["lm"].rows] == ([] if policy == "off" else [1, 2])
    assert all((each.apart > 0) == (policy == "rows") for each in verdicts["lm"].rows)


def test_what_is_written_shrinks_as_the_text_at_hand_did() -> None:
    """Half of the gates are gone, so a threshold skips half as much of either kind; what it cost is the most."""
    table = ((0.0, DENSE), (0.2, -1.0), (0.4, 1.0))
    written = ((0.0, DENSE), (0.2, -2.0), (0.4, 0.0))
    gates = SkipGates("learned", (1, 2), 4, 4, "any", table, written=written, written_loss=((0.0, 0.0), (0.4, 0.1)))
    fewer = with_fewer_gates(gates, [(0.0, DENSE), (0.1, -1.0), (0.2, 1.0)])
    assert fewer.thresholds == ((0.0, DENSE), (0.1, -1.0), (0.2, 1.0))
    assert fewer.written == ((0.0, DENSE), (0.1, -2.0), (0.2, 0.0))
    assert fewer.written_loss == ((0.0, 0.0), (0.2, 0.1))
    without = with_fewer_gates(replace(gates, written=(), written_loss=()), table[:2])
    assert (without.written, without.written_loss) == ((), ())

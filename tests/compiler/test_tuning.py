from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from adaptc.compiler import tuning
from adaptc.compiler.tuning import payoff
from adaptc.passes.skip_ffn.branch import branched
from adaptc.passes.skip_ffn.sides import sides
from adaptc.passes.skip_ffn.skips import run_always
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.bundle.gate_verdict import Payoff
from tests.close import ENGINE, assert_close
from tests.models import gated_bundle, skipping, tiny
from tests.models.gated_bundle import GATES


def test_each_form_of_a_graph_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is fixed: a step takes as many milliseconds as blocks run, and one more where gates decide."""

    def timed(decoder: HostDecoder, threshold: float) -> Callable[[], list[float]]:
        decoder.prefill(0, np.array([1, 2, 3]), threshold)
        decoder.decode([4])
        ran = decoder.ran(0)
        blocks = 3 if ran is None else 1 + sum(ran)
        return lambda: [(blocks + (ran is not None)) * 1e-3]

    monkeypatch.setattr(tuning, "_timed", timed)
    graph = skipping.onnx(gated_bundle.program(gated=True, emitted=False))
    times = payoff(graph, gated_bundle.DECODER, GATES, threads=1)
    assert times == Payoff(dense=3e-3, run=4e-3, skipped=2e-3, gates=2, shared=4e-3)


@pytest.mark.parametrize(
    ("skipped", "noise", "turns"),
    [(1e-3, 0.5e-3, tuning.TURNS), (2.8e-3, 3e-3, tuning.MOST_TURNS), (3.9e-3, 0.1e-3, tuning.TURNS)],
    ids=["gates pay", "close", "gates do not"],
)
def test_a_close_verdict_is_measured_longer(
    skipped: float, noise: float, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is fixed: a machine gets slower from turn to turn, and disturbs every other turn of one graph."""
    seconds = iter([3e-3, 4e-3, 4e-3, skipped])
    took: list[int] = []

    def timed(decoder: HostDecoder, threshold: float) -> Callable[[], list[float]]:
        base, disturbed, place = next(seconds), noise * (decoder.gates is None), len(took)
        took.append(0)

        def run() -> list[float]:
            took[place] += 1
            late = disturbed if took[place] % 2 else 0.0
            return [base + took[place] * 1e-3 + late, base + took[place] * 1e-3 + late]

        return run

    monkeypatch.setattr(tuning, "_timed", timed)
    graph = skipping.onnx(gated_bundle.program(gated=True, emitted=False))
    payoff(graph, gated_bundle.DECODER, GATES, threads=1)
    rounds = turns // tuning.TURNS
    assert took == [turns + rounds] * 4


def test_a_turn_begins_after_the_same_context_which_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = skipping.onnx(gated_bundle.program(gated=True, emitted=False))
    clock = iter(np.arange(0.0, 100.0, 0.5).tolist())
    monkeypatch.setattr(tuning, "perf_counter", lambda: next(clock))
    read: list[int] = []
    real = HostDecoder.prefill

    def prefill(self: HostDecoder, slot: int, ids: np.ndarray, threshold: float) -> np.ndarray:
        read.append(len(ids))
        return real(self, slot, ids, threshold)

    monkeypatch.setattr(HostDecoder, "prefill", prefill)
    with tuning.running({"gated": graph}, gated_bundle.DECODER, GATES, rows=2, threads=1) as [gated]:
        kinds = tuning._timed(gated, -np.inf, rows=2), tuning._timed(gated, np.inf, rows=2)
        context = gated_bundle.DECODER.max_tokens - tuning.STEPS - 1
        assert read == [context, context]
        for _ in range(2):
            for kind, runs in zip(kinds, (True, False), strict=True):
                assert kind() == [0.5] * tuning.STEPS
                assert [gated.length(row) for row in (0, 1)] == [context + 1 + tuning.STEPS] * 2
                assert all(set(gated.ran(row) or b"?") == {runs} for row in (0, 1))
        assert read == [context, context, 1, 1, 1, 1]


def test_gates_pay_when_they_skip_more_than_they_cost() -> None:
    cheap = Payoff(dense=1e-3, run=1.01e-3, skipped=0.81e-3, gates=2)
    assert cheap.cost == pytest.approx(5e-6)
    assert cheap.gain == pytest.approx(100e-6)
    assert cheap.break_even == pytest.approx(0.05)
    pays, why = cheap.verdict(GATES)
    assert pays
    assert why == (
        "a gate costs 5.0 µs a token, a skipped block saves 100.0 µs: it pays above 5% skipped, and up to 75% are"
    )
    dear = Payoff(dense=1e-3, run=1.2e-3, skipped=0.98e-3, gates=2)
    pays, why = dear.verdict(GATES)
    assert not pays
    assert why.endswith("it pays above 91% skipped, and at most 75% are")


def test_a_conditional_that_saves_nothing_never_pays() -> None:
    found = Payoff(dense=1e-3, run=1.1e-3, skipped=1.1e-3, gates=2)
    assert found.break_even == math.inf
    assert found.verdict(GATES)[0] is False
    assert found.verdict(GATES)[1].endswith("it pays never, and at most 75% are")


def test_noise_is_no_negative_cost() -> None:
    assert Payoff(dense=1e-3, run=0.9e-3, skipped=0.5e-3, gates=2).cost == 0


def test_without_gates_the_graph_is_the_dense_twin() -> None:
    gated, dense = (skipping.onnx(gated_bundle.program(gated=given, emitted=False)) for given in (True, False))
    before = gated.text()
    twin = run_always(gated, (0, 1))
    assert gated.text() == before
    twin.verify()
    assert [v.name for v in twin.model.graph.inputs] == [v.name for v in dense.model.graph.inputs]
    assert set(twin.model.graph.initializers) == set(dense.model.graph.initializers)
    ids = tiny.feeds(2, 9)["input_ids"]
    assert (tiny.step(twin, ids)[0] == tiny.step(dense, ids)[0]).all()


@pytest.mark.parametrize("dropped", [0, 1])
def test_a_gate_that_is_dropped_runs_always(dropped: int) -> None:
    graph = branched(run_always(skipping.onnx(skipping.lowered("llama")), [dropped]))
    graph.verify()
    [left] = sides(graph)
    assert all(f"layers.{skipping.GATED[1 - dropped]}." in (node.name or "") for node in left.block)
    from tests.passes.skip_ffn.test_branch import SKIP, step

    ids = tiny.feeds(1, 1)["input_ids"]
    logits, ran, _ = step(graph, ids, np.array([[SKIP]]))
    assert ran.tolist() == [False]
    whole = skipping.onnx(skipping.branched("llama"))
    assert np.abs(step(whole, ids, np.array([[SKIP]]))[0] - logits).max() > 0.01
    assert_close(step(graph, ids, np.array([[-SKIP]]))[0], tiny.eager("llama", tiny.feeds(1, 1)), **ENGINE)

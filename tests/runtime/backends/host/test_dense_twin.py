"""Which of two graphs, with gates and without, a step runs, and when each is loaded."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from adaptc.runtime import Session
from adaptc.runtime.backends.engine import Arrays, Engine
from adaptc.runtime.backends.fake import FakeEngine
from adaptc.runtime.backends.host.dense_twin import Form, TwinEngine
from adaptc.runtime.errors import EngineError
from tests.models.gated_lm import GatedLm, gates
from tests.models.history_lm import HistoryLm, decoder_spec, greedy
from tests.models.sessions import session_of

DENSE = -math.inf


class Both:
    """The model with gates and without.

    Attributes:
        loaded: What was loaded, in order.
        ran: Number of tokens in each run of the graph without gates.
        gated: The graph with gates.
        engines: Both of them.
    """

    def __init__(self, *wanted: Form) -> None:
        self.loaded: list[Form] = []
        self.ran: list[tuple[int, ...]] = []
        self.gated, inner = GatedLm(), HistoryLm(decoder_spec()).engine

        def dense(feeds: Arrays, outputs: Arrays) -> None:
            assert inner.function is not None
            assert "threshold" not in feeds
            assert "ran" not in outputs
            self.ran.append(feeds["input_ids"].shape)
            inner.function(feeds, outputs)

        self.engines: dict[Form, FakeEngine] = {
            "gated": self.gated.engine,
            "dense": FakeEngine(inner.inputs, inner.outputs, dense),
        }

        def load(kind: Form) -> Engine:
            self.loaded.append(kind)
            return self.engines[kind]

        self.engine = TwinEngine(self.gated.engine.inputs, self.gated.engine.outputs, load, wanted)

    def session(self, *, batch: int = 1, warmup: int = 4, rows: int = 1024) -> Session:
        given = replace(gates(warmup), rows=rows)
        return session_of(self.engine, self.gated.spec, batch=batch, chunk=2, gates=given)


def test_what_never_skips_never_loads_the_gates() -> None:
    both = Both("dense")
    with both.session() as running:
        result = running.generate([1, 2, 3], max_new_tokens=6)
    assert both.loaded == ["dense"]
    assert list(result.ids) == greedy([1, 2, 3], 6, decoder_spec())
    assert result.trace.skips is not None
    assert result.trace.skips.ran.all()


def test_a_step_that_may_skip_loads_them_and_prompt_and_warmup_do_without() -> None:
    both, alone = Both("dense"), GatedLm()
    with both.session() as running, session_of(alone.engine, alone.spec, chunk=2, gates=gates()) as other:
        for prompt in ([1, 2, 3], [4, 5, 6, 7, 8]):  # the second binds the arrays of the first anew
            mine, theirs = (each.generate(prompt, max_new_tokens=5, budget=0) for each in (running, other))
            assert mine.ids == theirs.ids
            assert mine.trace.skips is not None
            assert theirs.trace.skips is not None
            assert mine.trace.skips.ran.tolist() == theirs.trace.skips.ran.tolist()
            if len(prompt) == 3:
                assert both.loaded == ["dense", "gated"]
                assert both.ran == [(1, 3), (1, 1)]
    assert {level for run in both.gated.thresholds for row in run for level in row} == {0.5}


def test_what_always_skips_loads_one_graph() -> None:
    both = Both("gated")
    with both.session(warmup=0) as running:
        running.generate([1, 2], max_new_tokens=4, budget=0)
        running.generate([1, 2], max_new_tokens=4)
    assert both.loaded == ["gated"]
    assert not both.ran


def test_rows_that_do_not_pay_run_without_gates() -> None:
    both = Both("gated", "dense")
    with both.session(batch=2, warmup=0, rows=1) as running:
        running.generate([[1], [2]], max_new_tokens=3, budget=0)
        assert both.ran[-2:] == [(2, 1), (2, 1)]
        assert not both.gated.thresholds
        running.generate([1], max_new_tokens=3, budget=0)
    assert both.gated.thresholds == [[[0.5]], [[0.5]]]


def test_a_tensor_that_is_left_out_is_named() -> None:
    with pytest.raises(EngineError, match="input_ids: the graph has it, and no array is bound to it"):
        Both().engine.bind({}, {})


def test_closing_closes_what_was_loaded() -> None:
    both = Both("dense")
    running = both.session()
    running.generate([1], max_new_tokens=6, budget=0)
    running.close()
    assert both.loaded == ["dense", "gated"]
    assert [engine.function for engine in both.engines.values()] == [None, None]

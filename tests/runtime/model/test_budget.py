from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptc.runtime import RequestError, Session
from adaptc.runtime.backends.engine import Arrays
from adaptc.runtime.model.budget import threshold_at
from tests.models.gated_lm import THRESHOLDS, GatedLm, gates
from tests.models.history_lm import decoder_spec, greedy
from tests.models.sessions import session_of

DENSE = -math.inf


def session(lm: GatedLm, *, batch: int = 1, warmup: int = 4, policy: str = "any", budget: float = 1.0) -> Session:
    return session_of(lm.engine, lm.spec, batch=batch, chunk=2, gates=gates(warmup, policy), budget=budget)


def test_the_threshold_follows_the_table() -> None:
    found = [threshold_at(THRESHOLDS, budget) for budget in (1, 0.75, 0.5, 0.25, 0)]
    assert found == [DENSE, -1.0, -0.5, 0.0, 0.5]
    assert threshold_at(((0.0, -math.inf),), 0.5) == threshold_at((), 0) == DENSE
    assert threshold_at(((0.0, -math.inf), (0.3, 2.0)), 0.9) == 2.0


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_smaller_budget_never_means_a_lower_threshold(one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert threshold_at(THRESHOLDS, small) >= threshold_at(THRESHOLDS, large)


def test_prompt_and_warmup_are_dense() -> None:
    lm = GatedLm()
    with session(lm) as running:
        result = running.generate([1, 2, 3], max_new_tokens=5, budget=0)
    assert lm.thresholds == [[[DENSE] * 3], [[DENSE]], [[0.5]], [[0.5]], [[0.5]]]
    skips = result.trace.skips
    assert skips is not None
    assert skips.ran.tolist() == [[False, False, True]] * 3
    assert result.trace.ffn_skipped == skips.share == pytest.approx(2 / 6)
    assert list(result.ids) == greedy([1, 2, 3], 5, decoder_spec())


@pytest.mark.parametrize("budget", [1, 1.0, None])
def test_budget_one_is_dense(budget: float | None) -> None:
    lm = GatedLm()
    with session(lm) as running:
        result = running.generate([1], max_new_tokens=9, budget=budget)
    assert all(level == DENSE for run in lm.thresholds for row in run for level in row)
    assert result.trace.ffn_skipped == 0.0


def test_the_sessions_budget_is_for_requests_that_name_none() -> None:
    lm = GatedLm()
    with session(lm, warmup=0, budget=0.5) as running:
        for budget, expected in ((None, -0.5), (0.0, 0.5), (1.0, DENSE)):
            running.generate([1], max_new_tokens=2, budget=budget)
            assert lm.thresholds[-1] == [[expected]]
        stream = running.generate([1], max_new_tokens=2, stream=True)
        "".join(stream)
        assert lm.thresholds[-1] == [[-0.5]]
        assert stream.result.trace.ffn_skipped == pytest.approx(1 / 6)


def test_a_stream_may_change_its_budget_while_it_is_written() -> None:
    lm = GatedLm()
    run = lm.engine.function
    assert run is not None

    def step(feeds: Arrays, outputs: Arrays) -> None:
        if len(lm.thresholds) == 5:
            stream.set_budget(0.5)
        run(feeds, outputs)

    lm.engine.function = step
    with session(lm, warmup=0, batch=2) as running:
        stream = running.generate([1, 2], max_new_tokens=9, budget=0, stream=True)
        assert "".join(stream) == "", "there is no tokenizer"
        assert [row[0][0] for row in lm.thresholds[1:]] == [0.5] * 5 + [-0.5] * 3
        with pytest.raises(RequestError, match=r"^budget: 2"):
            stream.set_budget(2)


def test_the_gates_own_budget_is_for_sessions_that_name_none() -> None:
    lm = GatedLm()
    own = dataclasses.replace(gates(0), budget=0.5)
    with session_of(lm.engine, lm.spec, gates=own) as running:
        running.generate([1], max_new_tokens=2)
        assert lm.thresholds[-1] == [[-0.5]]
        running.generate([1], max_new_tokens=2, budget=1)
        assert lm.thresholds[-1] == [[DENSE]]


def test_more_rows_than_gain_run_dense() -> None:
    lm = GatedLm()
    few = dataclasses.replace(gates(0), rows=2)
    with session_of(lm.engine, lm.spec, batch=3, gates=few) as running:
        for rows, expected in ((2, 0.5), (3, DENSE)):
            running.generate([[1]] * rows, max_new_tokens=3, budget=0)
            assert lm.thresholds[-1] == [[expected]] * rows


def test_each_row_of_a_batch_warms_up_by_itself() -> None:
    lm = GatedLm()
    with session(lm, batch=2) as running:
        short, long = running.generate([[1], [1, 2, 3, 4, 5]], max_new_tokens=5, budget=0)
    decodes = [run for run in lm.thresholds if len(run) == 2]
    assert decodes == [[[DENSE], [0.5]]] * 3 + [[[0.5], [0.5]]]
    # While one row warms up every block runs, and the other row's tokens count as such.
    assert [len(r.trace.skips.ran) for r in (short, long) if r.trace.skips] == [1, 4]
    assert [r.trace.ffn_skipped for r in (short, long)] == [pytest.approx(2 / 6), pytest.approx(2 / 24)]


def test_rows_that_decide_apart_count_their_own_skips() -> None:
    """Beside a row that warms up, and in slots that others leave, as alone."""
    prompts = [[1], [1, 2, 3, 4, 5], [4, 4, 4, 4], [2, 2]]
    lengths = [9, 3, 6, 8]
    with session(GatedLm(apart=True), policy="rows") as running:
        alone = [running.generate(p, max_new_tokens=n, budget=0) for p, n in zip(prompts, lengths, strict=True)]
    lm = GatedLm(apart=True)
    with session_of(lm.engine, lm.spec, batch=3, chunk=2, gates=gates(4, "rows")) as running:
        together = running.generate(prompts, max_new_tokens=max(lengths), budget=0)
    for one, beside, length in zip(alone, together, lengths, strict=True):
        assert one.trace.skips is not None
        assert beside.trace.skips is not None
        count = len(one.trace.skips.ran)
        assert count > 0
        assert beside.ids[:length] == one.ids
        assert beside.trace.skips.ran[:count].tolist() == one.trace.skips.ran.tolist() == [[False, False, True]] * count
    assert any(len(run) == 3 and len(set(map(tuple, run))) == 2 for run in lm.thresholds), "rows differed in a step"


def test_a_batch_that_must_not_skip_runs_dense() -> None:
    lm = GatedLm()
    with session(lm, batch=2, warmup=0, policy="off") as running:
        running.generate([[1], [2]], max_new_tokens=3, budget=0)
        assert lm.thresholds[-1] == [[DENSE], [DENSE]]
        running.generate([1], max_new_tokens=3, budget=0)
        assert lm.thresholds[-1] == [[0.5]]


def test_scores_under_a_budget_go_token_by_token() -> None:
    lm = GatedLm()
    with session(lm) as running:
        dense = running.score([1, 2, 3, 4, 5, 6, 7])
        assert dense.skips is None
        assert [len(run[0]) for run in lm.thresholds] == [2, 2, 3]
        lm.thresholds.clear()
        cheap = running.score([1, 2, 3, 4, 5, 6, 7], budget=0)
        assert (cheap.values == dense.values).all()
        assert lm.thresholds == [[[DENSE]]] * 4 + [[[0.5]]] * 2
        assert cheap.skips is not None
        assert cheap.skips.share == pytest.approx(2 / 6)


@pytest.mark.parametrize("budget", [-0.1, 1.01, math.nan, math.inf, "half", True])
def test_refuses_a_budget_that_cannot_be(budget: float) -> None:
    message = r"^budget: .*; a number from 0 \(cheapest\) to 1 \(dense\) is needed$"
    with session(GatedLm()) as running:
        with pytest.raises(RequestError, match=message):
            running.generate([1], budget=budget)
        with pytest.raises(RequestError, match=message):
            running.score([1, 2], budget=budget)
    with pytest.raises(RequestError, match=message):
        session(GatedLm(), budget=budget)

"""Two tables of thresholds, for text that is scored and text that is written; budgets by what they cost; what pays."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptc.runtime import RequestError, Session, SkipGates
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.bundle.gate_verdict import Payoff
from adaptc.runtime.generation.option_checks import BudgetRules
from adaptc.runtime.model.budget import budget_of_loss, loss_of, share_of, threshold_of
from tests.models.gated_lm import GatedLm, gates

WRITTEN = ((0.0, -math.inf), (0.25, -2.5), (0.5, -1.5))
LOSSES = ((0.0, 0.0), (0.25, 0.02), (0.5, 0.1))


def measured(**changed: Any) -> SkipGates:
    return dataclasses.replace(gates(warmup=0), written=WRITTEN, written_loss=LOSSES, **changed)


def session(lm: GatedLm, own: SkipGates, **options: Any) -> Session:
    return Session(HostDecoder(lm.engine, lm.spec, 1, 2, own), **options)


def test_what_is_written_and_what_is_scored_have_thresholds_of_their_own() -> None:
    lm = GatedLm()
    with session(lm, measured()) as running:
        running.generate([1], max_new_tokens=4, budget=0.5)
        assert lm.thresholds[-1] == [[-2.5]]
        running.score([1, 2, 3, 4], budget=0.5)
        assert lm.thresholds[-1] == [[-0.5]]
        running.generate([1], max_new_tokens=4, budget=0)
        assert lm.thresholds[-1] == [[-1.5]]


def test_without_a_table_of_what_is_written_one_serves_for_both() -> None:
    own = gates(warmup=0)
    assert threshold_of(own, 0.5) == threshold_of(own, 0.5, scored=True) == -0.5
    assert threshold_of(measured(), 1.0) == threshold_of(None, 0.0) == -math.inf
    assert threshold_of(measured(), 0.0, 0.5) == -1.5, "a ceiling of one half is no floor"
    assert threshold_of(measured(), 0.9, 0.5) == -2.5


@pytest.mark.parametrize(("loss", "budget"), [(0.0, 1.0), (0.02, 0.5), (0.06, 0.25), (0.1, 0.0), (9.0, 0.0)])
def test_a_loss_picks_the_cheapest_budget_that_keeps_it(loss: float, budget: float) -> None:
    assert budget_of_loss(measured(), loss) == pytest.approx(budget)
    lm = GatedLm()
    with session(lm, measured()) as running:
        result = running.generate([1], max_new_tokens=4, max_loss=loss)
    assert result.trace.budget == pytest.approx(budget)
    assert result.trace.expected_loss == pytest.approx(min(loss, 0.1))


@given(st.floats(0, 1))
def test_the_loss_of_a_budget_is_at_most_the_one_that_picks_it(loss: float) -> None:
    kept = loss_of(measured(), budget_of_loss(measured(), loss))
    assert kept is not None
    assert kept <= loss + 1e-9


def test_the_sessions_loss_is_for_requests_that_name_neither() -> None:
    lm = GatedLm()
    with session(lm, measured(), rules=BudgetRules(max_loss=0.02)) as running:
        running.generate([1], max_new_tokens=4)
        assert lm.thresholds[-1] == [[-2.5]]
        running.generate([1], max_new_tokens=4, budget=0)
        assert lm.thresholds[-1] == [[-1.5]]


def test_a_loss_without_what_it_needs_is_refused() -> None:
    with (
        session(GatedLm(), gates(warmup=0)) as running,
        pytest.raises(RequestError, match="do not say what skipping costs"),
    ):
        running.generate([1], max_loss=0.1)
    with session(GatedLm(), measured()) as running:
        for options in ({"budget": 0.5, "max_loss": 0.1}, {"max_loss": -1.0}, {"max_loss": "much"}):
            with pytest.raises(RequestError, match=r"^max_loss: "):
                running.generate([1], **options)
        assert running.generate([1], max_new_tokens=2, budget=0.5).trace.expected_loss == pytest.approx(0.02)


def test_a_budget_below_what_pays_is_said_once_or_refused() -> None:
    pays = 0.3
    with session(GatedLm(), measured(), rules=BudgetRules(pays_from=pays)) as running:
        with pytest.warns(UserWarning, match=r"^budget: 0.50 skips 25% of blocks, .* at most 0.40, or 1, is"):
            running.generate([1], max_new_tokens=2, budget=0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for budget in (0.5, 0.9, 0.3, 0.0, 1.0, None):
                running.generate([1], max_new_tokens=2, budget=budget)
    with session(GatedLm(), measured(), rules=BudgetRules(pays_from=pays, unpaid="refuse")) as running:
        running.generate([1], max_new_tokens=2, budget=0.3)
        running.generate([1], max_new_tokens=2)
        for _ in range(2):
            with pytest.raises(RequestError, match="gates pay from 30% on"):
                running.generate([1], max_new_tokens=2, budget=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with session(GatedLm(), measured(), rules=BudgetRules(pays_from=pays, unpaid="allow")) as running:
            running.generate([1], max_new_tokens=2, budget=0.5)
        with session(GatedLm(), measured()) as running:
            running.generate([1], max_new_tokens=2, budget=0.99)
    with pytest.raises(RequestError, match=r"^unpaid: 'never'; there are: warn, refuse, allow$"):
        session(GatedLm(), measured(), rules=BudgetRules(unpaid="never"))


def test_the_share_that_pays_counts_all_blocks() -> None:
    payoff = Payoff(dense=1.0, run=1.03, skipped=0.91, gates=3)
    assert payoff.break_even == pytest.approx(0.25)
    assert payoff.pays_from(measured()) == pytest.approx(0.125), "three of six blocks have a gate"
    assert share_of(measured(), 0.75) == pytest.approx(0.125)

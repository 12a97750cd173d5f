"""Budgets, routes and deadlines over HTTP, on bundles with gates and with a router."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Any

import numpy as np
import pytest

from adaptc.runtime import LoadTargets, RequestError, Session, load
from adaptc.runtime.server.endpoints.parts import ServerParts
from adaptc.runtime.server.serving.models import load_model
from tests.repo import ROOT
from tests.server.served import ask, error_of, parts_of
from tests.server.test_metrics import numbers

STORED = ROOT / "tests/stored/schema3"
PROMPT = [5, 9, 40, 7, 101, 33, 8, 21]


@pytest.fixture(scope="module")
def stored() -> Iterator[ServerParts]:
    """A server with both stored bundles."""
    parts = parts_of(*(load_model(STORED / name, name, threads=1) for name in ("gated", "stitched")))
    yield parts
    parts.models.close()


def complete(parts: ServerParts, model: str, **more: Any) -> dict[str, Any]:
    body = {"model": model, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "logprobs": 0, **more}
    answer: dict[str, Any] = ask(parts, "/v1/completions", body).json()
    return answer


def session_of(parts: ServerParts, name: str) -> Session:
    return parts.models.text(name)[0].session


@pytest.mark.parametrize(
    ("model", "controls", "budget"),
    [
        ("gated@fast", {}, 0.0),
        ("gated@balanced", {}, 0.5),
        ("gated@dense", {}, 1.0),
        ("gated@fast", {"budget": 1.0}, 1.0),
        ("gated", {"budget": 0.25}, 0.25),
        ("gated", {}, None),
    ],
)
def test_a_budget_is_that_of_the_name_or_of_the_request(
    stored: ServerParts, model: str, controls: dict[str, float], budget: float | None
) -> None:
    solo = session_of(stored, "gated").generate(PROMPT, max_tokens=24, budget=budget)
    answer = complete(stored, model, adaptc=controls)
    told = answer["adaptc"]
    assert answer["usage"]["completion_tokens"] == len(solo.ids)
    assert answer["choices"][0]["text"] == solo.text
    assert told["budget"] == budget
    assert told["ffn_skipped"] == pytest.approx(solo.trace.ffn_skipped, abs=1e-4)
    assert told["skipped_by_layer"].keys() == {"1", "2"}
    assert solo.trace.skips is not None
    shares = [1 - float(column.mean()) for column in solo.trace.skips.ran.T]
    assert list(told["skipped_by_layer"].values()) == pytest.approx(shares, abs=1e-4)


def test_less_runs_at_a_lower_budget(stored: ServerParts) -> None:
    skipped = [complete(stored, f"gated@{policy}")["adaptc"]["ffn_skipped"] for policy in ("fast", "balanced", "dense")]
    assert skipped[0] > skipped[2] == 0
    assert skipped == sorted(skipped, reverse=True)


def test_skips_are_counted_by_layer() -> None:
    parts = parts_of(load_model(STORED / "gated", "gated", threads=1))
    told = complete(parts, "gated@fast")["adaptc"]["skipped_by_layer"]
    found = numbers(ask(parts, "/metrics").text)
    for layer, share in told.items():
        ratio = found["adaptc:ffn_skip_ratio", (("layer", layer), ("model_name", "gated"))]
        assert ratio == pytest.approx(share, abs=1e-4)
    parts.models.close()


def test_the_router_decides_as_it_says_it_would(stored: ServerParts) -> None:
    session = session_of(stored, "stitched")
    for budget in (None, 0.0, 0.5, 1.0):
        choice = session.choose(PROMPT, budget=budget)
        body = {"model": "stitched", "prompt": PROMPT, "adaptc": {"budget": budget}}
        decided = ask(stored, "/v1/route", body).json()
        assert decided["route"] == choice.route
        assert decided["losses"] == pytest.approx(choice.losses)
        assert decided["costs"] == choice.costs
        answer = complete(stored, "stitched", adaptc={"budget": budget})
        assert answer["adaptc"]["route"] == choice.route


@pytest.mark.parametrize("route", ["large", "small", "short", "sandwich"])
def test_a_name_carries_a_route(stored: ServerParts, route: str) -> None:
    solo = session_of(stored, "stitched").generate(PROMPT, max_tokens=24, route=route)
    answer = complete(stored, f"stitched@{route}")
    assert (answer["adaptc"]["route"], answer["adaptc"]["routes"]) == (route, [[0, route]])
    assert answer["choices"][0]["text"] == solo.text


def test_models_are_listed_with_their_policies(stored: ServerParts) -> None:
    names = [each["id"] for each in ask(stored, "/v1/models").json()["data"]]
    assert names == [
        *("gated", "gated@fast", "gated@balanced", "gated@dense", "stitched"),
        *(f"stitched@{route}" for route in ("large", "small", "short", "sandwich", "fast", "balanced", "dense")),
    ]


def test_floors_of_accuracy_are_for_inputs(stored: ServerParts) -> None:
    body = {"model": "gated", "prompt": PROMPT, "adaptc": {"accuracy": 0.9}}
    error = error_of(ask(stored, "/v1/completions", body))
    assert error["message"] == (
        "adaptc.accuracy: for bundles that answer inputs (/v1/infer); adaptc.budget is for text"
    )
    assert error["param"] == "adaptc.accuracy"


def test_under_load_budgets_go_down_to_each_request_s_floor() -> None:
    """The target is so short that any step misses it."""
    targets = LoadTargets(time_to_first_token=1e-4, min_budget=0.4)
    parts = parts_of(load_model(STORED / "gated", "gated", threads=1, targets=targets))
    try:
        started = monotonic()
        while complete(parts, "gated")["adaptc"]["lowered_to"] != 0.4:
            assert monotonic() - started < 30, "no budget was lowered"
        lowest = {
            "own": complete(parts, "gated", adaptc={"min_budget": 0})["adaptc"],
            "asked": complete(parts, "gated", adaptc={"budget": 0.75})["adaptc"],
            "both": complete(parts, "gated", adaptc={"budget": 0.75, "min_budget": 0.5})["adaptc"],
            "dense": complete(parts, "gated@dense")["adaptc"],
        }
        assert {name: told["lowered_to"] for name, told in lowest.items()} == {
            "own": pytest.approx(0.2, abs=0.2),
            "asked": None,
            "both": 0.5,
            "dense": None,
        }
        assert lowest["own"]["ffn_skipped"] > lowest["dense"]["ffn_skipped"] == 0
        found = numbers(ask(parts, "/metrics").text)
        model = (("model_name", "gated"),)
        assert found["adaptc:budget_lowered_total", model] >= 3
        assert found["adaptc:load_pressure", model] > 0.9
        assert 0 <= found["adaptc:load_budget_ceiling", model] < 0.4
        assert found["adaptc:step_seconds", model] > 0
    finally:
        parts.models.close()


def test_a_floor_above_the_budget_is_refused(stored: ServerParts) -> None:
    body = {"model": "gated@balanced", "prompt": PROMPT, "adaptc": {"min_budget": 0.6}}
    error = error_of(ask(stored, "/v1/completions", body))
    assert error["message"] == "min_budget: 0.6; at most budget, which is 0.5, is right"


def test_a_router_s_choice_is_capped() -> None:
    """Its threshold is no lower than the ceiling's, whatever was calibrated."""
    with load(STORED / "stitched", threads=1) as session:
        router = session._decoder._router  # type: ignore[attr-defined]
        states = np.random.default_rng(0).standard_normal((6, len(router.weights["w1"][0]) // 2), np.float32)
        for budget in (None, 0.0, 0.4, 1.0):
            for ceiling in (0.0, 0.3, 0.7, 1.0):
                own, cap = router.choose(states, budget).threshold, router.threshold_at(ceiling)
                assert router.choose(states, budget, ceiling).threshold == max(own, cap)


def test_under_load_a_router_takes_cheaper_routes_and_a_named_route_stays() -> None:
    targets = LoadTargets(time_to_first_token=1e-4, min_budget=0)
    parts = parts_of(load_model(STORED / "stitched", "stitched", threads=1, targets=targets))
    try:
        cheapest = session_of(parts, "stitched").choose(PROMPT, budget=0).route
        started = monotonic()
        while (told := complete(parts, "stitched")["adaptc"])["lowered_to"] != 0:
            assert monotonic() - started < 30, "no budget was lowered"
        assert told["route"] == cheapest
        kept = complete(parts, "stitched@large")["adaptc"]
        assert (kept["route"], kept["lowered_to"]) == ("large", None)
    finally:
        parts.models.close()


def test_targets_do_not_keep_a_replica_of_few_routes_from_starting() -> None:
    """Without all routes there is no router, and nothing that load could lower."""
    targets = LoadTargets(time_to_first_token=1e-4, min_budget=0)
    parts = parts_of(load_model(STORED / "stitched", "few", threads=1, targets=targets, routes=["small", "short"]))
    try:
        told = complete(parts, "few@short")["adaptc"]
        assert (told["route"], told["lowered_to"]) == ("short", None)
        with pytest.raises(RequestError, match=r"^load_targets: .* has neither gates nor a router"):
            load(STORED / "stitched", threads=1, load_targets=targets, routes=["small"])
    finally:
        parts.models.close()

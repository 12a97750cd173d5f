"""Tokens, routes, models and health over HTTP."""

from __future__ import annotations

from adaptc.runtime.server.endpoints.parts import ServerParts
from tests.models.routed_lm import SHIFTS, RoutedLm
from tests.server.served import SPEC, ask, by_hand, error_of, message, parts_of


def test_tokens_are_the_tokenizer_s(server: ServerParts) -> None:
    tokenizer = server.models.text("tiny")[0].session.tokenizer
    assert tokenizer is not None
    answer = ask(server, "/tokenize", {"prompt": "the cat é", "return_token_strs": True}).json()
    assert answer["tokens"] == tokenizer.encode("the cat é")
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 96
    assert ask(server, "/detokenize", {"tokens": answer["tokens"]}).json() == {"prompt": "the cat é"}
    chat = ask(server, "/tokenize", {"messages": message("the cat")}).json()
    assert chat["tokens"] == tokenizer.encode(tokenizer.render(message("the cat")), special=False)
    both = ask(server, "/tokenize", {"messages": message("x"), "prompt": "x"})
    assert error_of(both)["message"] == "prompt: one of prompt and messages is needed"


def test_every_policy_is_a_model_of_its_own() -> None:
    parts = parts_of(by_hand(), by_hand("routed", session=RoutedLm(SPEC).session()))
    names = [each["id"] for each in ask(parts, "/v1/models").json()["data"]]
    assert names == ["hand", "routed", *(f"routed@{route}" for route in SHIFTS)]
    assert ask(parts, "/v1/models/routed@cheap").json()["adaptc"]["route"] == "cheap"
    assert error_of(ask(parts, "/v1/models/other"))["code"] == "model_not_found"
    missing = ask(parts, "/v1/completions", {"prompt": "x"})
    assert error_of(missing)["message"] == "model: missing; there are: hand, routed"


def test_a_policy_and_a_request_choose_the_route() -> None:
    lm = RoutedLm(SPEC)
    parts = parts_of(by_hand("routed", session=lm.session()))
    for route in SHIFTS:
        for asked in ({"model": f"routed@{route}"}, {"model": "routed@dear", "adaptc": {"route": route}}):
            body = {"prompt": [3, 1, 4], "max_tokens": 3, "temperature": 0, "logprobs": 0, **asked}
            answer = ask(parts, "/v1/completions", body).json()
            assert answer["adaptc"]["route"] == route
            tokens = [f"token_id:{each}" for each in lm.greedy([3, 1, 4], [route] * 3)]
            assert answer["choices"][0]["logprobs"]["tokens"] == tokens


def test_a_model_without_a_router_decides_nothing(server: ServerParts) -> None:
    answer = ask(server, "/v1/route", {"prompt": "x"})
    assert answer.status_code == 400
    assert "rout" in error_of(answer)["message"]


def test_health_is_known_without_a_model() -> None:
    parts = parts_of()
    assert ask(parts, "/health").json() == {"status": "ok"}
    assert ask(parts, "/ready").json() == {"status": "ready"}
    assert error_of(ask(parts, "/v1/completions", {"prompt": "x", "model": "y"}))["type"] == "not_found_error"

"""Completions over HTTP: prompts continued and scored, one or several."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adaptc.runtime import Session
from adaptc.runtime.server.endpoints.parts import ServerParts
from tests.server.served import ask, error_of, events

COMPLETE = "/v1/completions"
PROMPTS = ["the cat", "the mat sat on"]


def body(prompt: Any, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 8, **more}


def session_of(server: ServerParts) -> Session:
    return server.models.text("tiny")[0].session


@pytest.mark.parametrize("as_ids", [False, True])
def test_several_prompts_get_their_own_answers(server: ServerParts, as_ids: bool) -> None:
    session = session_of(server)
    assert session.tokenizer is not None
    solo = [session.generate(each, max_tokens=8) for each in PROMPTS]
    given = [session.tokenizer.encode(each) for each in PROMPTS] if as_ids else PROMPTS
    answer = ask(server, COMPLETE, body(given)).json()
    assert [each["text"] for each in answer["choices"]] == [each.text for each in solo]
    assert [each["index"] for each in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] == sum(len(each.ids) for each in solo)
    told = events(ask(server, COMPLETE, body(given, stream=True)))
    for index, each in enumerate(solo):
        pieces = [one["choices"][0] for one in told if one["choices"][0]["index"] == index]
        assert "".join(one["text"] for one in pieces) == each.text
        assert pieces[-1]["finish_reason"] == "length"


def test_one_prompt_as_text_and_as_ids(server: ServerParts) -> None:
    session = session_of(server)
    assert session.tokenizer is not None
    text = ask(server, COMPLETE, body(PROMPTS[0])).json()["choices"][0]["text"]
    assert text == ask(server, COMPLETE, body(session.tokenizer.encode(PROMPTS[0]))).json()["choices"][0]["text"]
    assert text == session.generate(PROMPTS[0], max_tokens=8).text


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_an_echo_has_the_scores_of_the_prompt(server: ServerParts, max_tokens: int) -> None:
    """What lm-evaluation-harness asks: the prompt's tokens with their log-probabilities, and one token more or none."""
    session = session_of(server)
    assert session.tokenizer is not None
    ids = session.tokenizer.encode(PROMPTS[1])
    scores = session.score(ids)
    answer = ask(server, COMPLETE, body([ids], logprobs=1, echo=True, max_tokens=max_tokens)).json()
    [choice] = answer["choices"]
    assert choice["text"].startswith(PROMPTS[1])
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(ids) + max_tokens
    assert "".join(logprobs["tokens"][: len(ids)]) == PROMPTS[1]
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    np.testing.assert_allclose(logprobs["token_logprobs"][1 : len(ids)], scores.values, rtol=1e-5)
    for place, top in enumerate(logprobs["top_logprobs"][1 : len(ids)]):
        assert max(top.values()) == pytest.approx(float(scores.best[place]))
        assert top[logprobs["tokens"][place + 1]] == logprobs["token_logprobs"][place + 1]
        assert len(top) <= 2
    assert logprobs["text_offset"] == [
        sum(map(len, logprobs["tokens"][:place])) for place in range(len(ids) + max_tokens)
    ]
    assert answer["usage"]["completion_tokens"] == max_tokens
    if max_tokens:
        assert logprobs["token_logprobs"][-1] == pytest.approx(max(logprobs["top_logprobs"][-1].values()))


def test_scores_name_the_most_likely_token(server: ServerParts) -> None:
    session = session_of(server)
    assert session.tokenizer is not None
    ids = session.tokenizer.encode(PROMPTS[1])
    scores = session.score(ids)
    for place in range(1, len(ids)):
        assert session.generate(ids[:place], max_tokens=1).ids == (int(scores.best_ids[place - 1]),)
    assert (scores.best >= scores.values).all()


def test_streamed_log_probabilities_are_the_whole_s(server: ServerParts) -> None:
    whole = ask(server, COMPLETE, body(PROMPTS[0], logprobs=2)).json()["choices"][0]["logprobs"]
    told = events(ask(server, COMPLETE, body(PROMPTS[0], logprobs=2, stream=True)))
    parts = [each["choices"][0]["logprobs"] for each in told]
    for name, values in whole.items():
        assert [value for part in parts for value in part[name]] == values
    assert len(whole["tokens"]) == 8


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"n": 2}, "n: 2; one answer is written for each prompt: ask several times, with seeds"),
        ({"best_of": 3}, "best_of: 3; answers are not ranked: leave it out"),
        ({"suffix": "x"}, "suffix: text is only continued, never filled in; leave it out"),
        ({"max_tokens": 0}, "max_tokens: 0; 1 or more are needed where the prompt is not echoed"),
        ({"echo": True, "logprobs": 3}, "logprobs: 3; with echo at most 1 is right"),
        ({"prompt": []}, "prompt: 0 entries; 1 or more are right"),
        ({"prompt": ["x"] * 129}, "prompt: 129 of them; at most 128 are right"),
        ({"prompt": [[1], [400]]}, "prompt: token id 400; ids go from 0 to 329"),
        ({"prompt": [1, "x"]}, "prompt[1]: 'x'; a whole number from 0 to 4294967295 is needed"),
        ({"logit_bias": {"330": 1}}, "logit_bias: '330'; token ids from 0 to 329 are needed"),
        (
            {"adaptc": {"budget": 0.5}},
            "budget: this bundle has neither gates nor a router and always runs whole; leave it out",
        ),
        ({"adaptc": {"route": "x"}}, "route: no route 'x'; this bundle has none"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(server: ServerParts, more: dict[str, Any], said: str) -> None:
    answer = ask(server, COMPLETE, {**body(PROMPTS[0]), **more})
    assert answer.status_code == 400
    assert error_of(answer)["message"] == said

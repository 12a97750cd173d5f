"""Chats over HTTP: what the session writes, whole and as events, with what OpenAI's API says of it."""

from __future__ import annotations

import codecs
from typing import Any

import numpy as np
import pytest

from adaptc.runtime.server.endpoints.parts import ServerParts
from adaptc.runtime.server.serving.models import TextModel
from tests.server.served import ask, events, message

CHAT = "/v1/chat/completions"
HELLO = message("the cat sat")


def body(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 12, **more}


def model_of(server: ServerParts) -> TextModel:
    model, _ = server.models.text("tiny")
    return model


def test_a_chat_is_what_the_session_writes(server: ServerParts) -> None:
    solo = model_of(server).session.chat(HELLO, max_tokens=12)
    answer = ask(server, CHAT, body()).json()
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": solo.text, "refusal": None}
    assert choice["finish_reason"] == {"length": "length", "eos": "stop"}[solo.finish_reason]
    assert answer["usage"]["prompt_tokens"] == solo.prompt_tokens
    assert answer["usage"]["completion_tokens"] == len(solo.ids)
    assert answer["usage"]["total_tokens"] == solo.prompt_tokens + len(solo.ids)
    assert (answer["object"], answer["model"]) == ("chat.completion", "tiny")
    assert answer["adaptc"]["finish_reason"] == solo.finish_reason
    assert answer["adaptc"]["total_ms"] > 0


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_has_the_same_text(server: ServerParts, usage: bool) -> None:
    whole = ask(server, CHAT, body()).json()
    told = events(ask(server, CHAT, body(stream=True, stream_options={"include_usage": usage})))
    if usage:
        last = told.pop()
        assert (last["choices"], last["usage"]) == ([], whole["usage"])
    choices = [each["choices"][0] for each in told]
    assert choices[0]["delta"]["role"] == "assistant"
    assert all("role" not in each["delta"] for each in choices[1:])
    text = "".join(each["delta"].get("content", "") for each in choices)
    assert text == whole["choices"][0]["message"]["content"]
    assert [each["finish_reason"] for each in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert len({each["id"] for each in told}) == 1
    assert told[-1]["adaptc"]["finish_reason"] == "length"


def test_log_probabilities_are_the_model_s_own(server: ServerParts) -> None:
    session = model_of(server).session
    assert session.tokenizer is not None
    prompt = session.tokenizer.encode(session.tokenizer.render(HELLO), special=False)
    solo = session.generate(prompt, max_tokens=12)
    scores = session.score([*prompt, *solo.ids])
    answer = ask(server, CHAT, body(logprobs=True, top_logprobs=3, presence_penalty=0.0)).json()
    content = answer["choices"][0]["logprobs"]["content"]
    np.testing.assert_allclose(
        [each["logprob"] for each in content], scores.values[len(prompt) - 1 :], rtol=1e-4, atol=1e-4
    )
    assert bytes(byte for each in content for byte in each["bytes"]).decode(errors="replace") == solo.text
    for each in content:
        top = [one["logprob"] for one in each["top_logprobs"]]
        assert len(top) == 3
        assert top == sorted(top, reverse=True)
        assert top[0] == pytest.approx(each["logprob"])  # greedy
    told = events(ask(server, CHAT, body(logprobs=True, top_logprobs=3, stream=True)))
    parts = [each["choices"][0]["logprobs"] for each in told]
    assert [token for part in parts for token in part["content"]] == content


def test_each_chunk_has_the_log_probabilities_of_its_own_text(server: ServerParts) -> None:
    asked = body(
        logprobs=True, stream=True, temperature=2, seed=4, max_tokens=60
    )  # some characters take several tokens
    choices = [each["choices"][0] for each in events(ask(server, CHAT, asked))]
    pieces = [each for each in choices if "content" in each["delta"]]
    assert len(pieces) > 10
    assert max(len(each["logprobs"]["content"]) for each in pieces) > 1
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # bytes that make no character yet come with the next
    for each in pieces:
        spelled = bytes(byte for token in each["logprobs"]["content"] for byte in token["bytes"])
        assert decoder.decode(spelled, final=each is pieces[-1]) == each["delta"]["content"] != ""


def test_sampling_is_repeatable_by_its_seed_alone(server: ServerParts) -> None:
    def text(seed: int, **more: Any) -> str:
        asked = body(temperature=1.5, seed=seed, max_tokens=20, **more)
        answer: str = ask(server, CHAT, asked).json()["choices"][0]["message"]["content"]
        return answer

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(8)}) > 1
    assert len({text(seed, top_k=1) for seed in range(4)}) == 1


def test_a_bias_decides(server: ServerParts) -> None:
    tokenizer = model_of(server).session.tokenizer
    assert tokenizer is not None
    [token] = tokenizer.encode("c", special=False)
    answer = ask(server, CHAT, body(logit_bias={str(token): 100}, max_tokens=4)).json()
    assert answer["choices"][0]["message"]["content"] == "cccc"


def test_penalties_count_what_was_written(server: ServerParts) -> None:
    tokenizer = model_of(server).session.tokenizer
    assert tokenizer is not None
    one, two = (tokenizer.encode(letter, special=False)[0] for letter in "cs")
    bias = {str(one): 50, str(two): 49}

    def text(**penalties: float) -> str:
        asked = body(logit_bias=bias, max_tokens=4, **penalties)
        answer: str = ask(server, CHAT, asked).json()["choices"][0]["message"]["content"]
        return answer

    assert text() == "cccc"
    assert text(presence_penalty=2).startswith("cs")
    assert sorted(text(frequency_penalty=2)) == ["c", "c", "s", "s"]


def test_a_stop_string_is_no_part_of_the_answer(server: ServerParts) -> None:
    text = ask(server, CHAT, body()).json()["choices"][0]["message"]["content"]
    stop = text[3:5]
    answer = ask(server, CHAT, body(stop=stop)).json()["choices"][0]
    assert answer["message"]["content"] == text[: text.index(stop)]
    assert answer["finish_reason"] == "stop"


def test_a_deadline_ends_an_answer(server: ServerParts) -> None:
    answer = ask(server, CHAT, body(adaptc={"deadline_ms": 0.001})).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["adaptc"]["finish_reason"] == "deadline"


def test_parts_of_text_are_a_text(server: ServerParts) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "the cat"}, {"type": "text", "text": " sat"}]}]
    assert ask(server, CHAT, body(messages=parts)).json()["usage"] == ask(server, CHAT, body()).json()["usage"]

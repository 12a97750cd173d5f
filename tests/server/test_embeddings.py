"""`/v1/embeddings`: the session's vectors in OpenAI's form, and what is refused."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from adaptc.runtime.server.endpoints.parts import ServerParts
from adaptc.runtime.server.serving.models import EncoderModel
from tests.models.text_encoder import with_tokenizer
from tests.server.served import ask, by_hand, error_of, parts_of

PATH = "/v1/embeddings"


@pytest.fixture
def parts() -> ServerParts:
    return parts_of(EncoderModel("words", with_tokenizer()))


@pytest.mark.parametrize("given", ["the cat sat", [1, 4, 5, 2], ["a", "the cat sat on it"], [[1], [2, 3]]])
def test_vectors_are_the_sessions(parts: ServerParts, given: Any) -> None:
    answer = ask(parts, PATH, {"input": given, "model": "words"}).json()
    with with_tokenizer() as session:
        expected = np.atleast_2d(session.embed(given))
    assert [each["embedding"] for each in answer["data"]] == expected.tolist()
    assert [each["index"] for each in answer["data"]] == list(range(len(expected)))
    assert {each["object"] for each in answer["data"]} == {"embedding"}
    tokens = int(expected[:, 1].sum())
    assert (answer["object"], answer["model"]) == ("list", "words")
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_base64_is_little_endian_float32(parts: ServerParts) -> None:
    """As OpenAI's clients ask for it unless they are told otherwise."""
    plain = ask(parts, PATH, {"input": ["a cat"]}).json()["data"][0]["embedding"]
    packed = ask(parts, PATH, {"input": ["a cat"], "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(packed), "<f4").tolist() == plain


def test_prompts_and_cutting_are_adaptcs_own(parts: ServerParts) -> None:
    prompted = ask(parts, PATH, {"input": "sat", "adaptc": {"prompt": "query"}}).json()
    assert prompted["data"] == ask(parts, PATH, {"input": "cat sat"}).json()["data"]
    assert prompted["usage"]["prompt_tokens"] == 4
    cut = ask(parts, PATH, {"input": "the " * 30, "adaptc": {"truncate": True}}).json()
    assert cut["usage"]["prompt_tokens"] == 9


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "input: missing"),
        ({"input": []}, "input: "),
        ({"input": "the " * 30}, "texts[0]: 32 tokens; at most 9 are possible"),
        ({"input": [[99]]}, "texts[0]: 99; a whole number from 0 to 20"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format: 'int8'; "),
        ({"input": "a", "dimensions": 2}, "dimensions: 2; words gives 3: leave it out"),
        ({"input": "a", "stream": True}, "stream"),
    ],
)
def test_wrong_bodies_are_refused(parts: ServerParts, body: dict[str, Any], said: str) -> None:
    answer = ask(parts, PATH, body)
    assert answer.status_code == 400
    assert said in error_of(answer)["message"]


def test_each_kind_of_model_has_its_endpoint(parts: ServerParts) -> None:
    chat = error_of(ask(parts, "/v1/completions", {"prompt": "a", "model": "words"}))
    assert chat["message"] == "model: words makes vectors and writes no text; /v1/embeddings is for it"
    infer = error_of(ask(parts, "/v1/infer", {"inputs": {"text": "a"}}))
    assert infer["message"] == "model: words makes vectors; /v1/embeddings is for it, not /v1/infer"
    writes = parts_of(by_hand())
    assert error_of(ask(writes, PATH, {"input": "a"}))["message"] == (
        "model: hand makes no vectors, and /v1/embeddings is for encoders of texts; none is served here"
    )


def test_the_server_says_what_it_serves(parts: ServerParts) -> None:
    [card] = ask(parts, "/v1/models").json()["data"]
    assert (card["id"], card["max_model_len"], card["adaptc"]) == ("words", 9, {"kind": "embeddings"})
    ask(parts, PATH, {"input": "a"})
    [state] = ask(parts, "/ui/state").json()["models"]
    assert (state["name"], state["minute"]["requests"]) == ("words", 1)
    assert PATH in ask(parts, "/openapi.json").json()["paths"]

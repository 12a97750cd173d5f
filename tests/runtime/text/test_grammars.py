"""Grammars: whatever the logits say, an answer follows them."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from adaptc.runtime.errors import RequestError
from adaptc.runtime.text.grammars import Grammars
from adaptc.runtime.text.sampling import Sampler, Sampling
from adaptc.runtime.text.tokenizer import Tokenizer
from tests.models.tiny_tokenizer import byte_level, files

pytest.importorskip("llguidance", reason="the extra serve is not installed here")

FILES = files(byte_level())
VOCAB, END = 324, 1
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": ["x", "é"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


def written(kind: str, text: str, seed: int) -> str:
    """What random logits make of a grammar, up to the end token."""
    rule = Grammars(FILES["tokenizer.json"], VOCAB, [END]).rule(kind, text)
    random = np.random.default_rng(seed)
    sampler = Sampler(Sampling(temperature=1, rules=[lambda: rule]), [], random)
    ids: list[int] = []
    while not ids or ids[-1] != END:
        ids.append(sampler(random.normal(size=VOCAB).astype(np.float32) * 3))
        assert len(ids) < 2000
    return Tokenizer(FILES).decode(ids[:-1])


@pytest.mark.parametrize("seed", range(5))
def test_random_logits_write_what_the_schema_asks(seed: int) -> None:
    value: dict[str, Any] = json.loads(written("json", json.dumps(SCHEMA), seed))
    assert value.keys() == {"a", "b"}
    assert 0 <= value["a"] <= 99
    assert value["b"] in ("x", "é")


def test_white_space_ends() -> None:
    rule = Grammars(FILES["tokenizer.json"], VOCAB, [END]).rule("json", json.dumps(SCHEMA))
    names = [Tokenizer(FILES).decode([token]) for token in range(VOCAB)]
    likes = np.array([float(bool(name) and not name.strip()) for name in names], np.float32)
    sampler = Sampler(Sampling(rules=[lambda: rule]), [], np.random.default_rng(0))
    ids: list[int] = []
    while not ids or ids[-1] != END:
        ids.append(sampler(likes.copy()))
        assert len(ids) < 400
    assert json.loads(Tokenizer(FILES).decode(ids[:-1])).keys() == {"a", "b"}


@pytest.mark.parametrize("seed", range(5))
def test_choices_expressions_and_grammars(seed: int) -> None:
    assert written("choice", '["yes", "no \\"!"]', seed) in ("yes", 'no "!')
    assert re.fullmatch("[a-c]{2,4}-[0-9]", written("regex", "[a-c]{2,4}-[0-9]", seed))
    assert written("grammar", 'start: "the " ("cat" | "mat")', seed) in ("the cat", "the mat")


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("json", "{", "not JSON"),
        ("json", '{"type": "nonsense"}', "a valid json is needed"),
        ("regex", "(", "a valid regex is needed"),
        ("grammar", "start: /[", "a valid grammar is needed"),
    ],
)
def test_a_wrong_grammar_is_refused(kind: str, text: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Grammars(FILES["tokenizer.json"], VOCAB, [END]).rule(kind, text)


def test_a_model_that_could_not_end_is_refused() -> None:
    with pytest.raises(RequestError, match="has no end token"):
        Grammars(FILES["tokenizer.json"], VOCAB, []).rule("regex", "a")
    with pytest.raises(RequestError, match="has no tokenizer"):
        Grammars(b"", VOCAB, [END]).rule("regex", "a")

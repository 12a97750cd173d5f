"""sentence-transformers' files: pooling, normalizing, the longest text and prompts, as its library reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptc import runtime
from adaptc.errors import LoadError
from adaptc.families.sentences import MEAN, Sentences
from adaptc.sources.folder.sentences import sentences_of
from tests.close import ENGINE, assert_close
from tests.models import encoders

PROMPTS = {"query": "red ", "passage": "blue ", "none": ""}


def test_a_folder_of_transformers_alone_is_averaged(tmp_path: Path) -> None:
    assert sentences_of("m", tmp_path) == MEAN


def test_all_that_the_files_say(tmp_path: Path) -> None:
    encoders.sentence_files(
        tmp_path, "mean_tokens", "cls_token", normalize=True, longest=9, prompts=PROMPTS, default_prompt_name="query"
    )
    named = {"query": "red ", "passage": "blue "}
    assert sentences_of("m", tmp_path) == Sentences(("cls", "mean"), True, 9, named, "query")


@pytest.mark.parametrize("stated", ["lasttoken", ["lasttoken"]])
def test_newer_files_name_the_mode(stated: Any, tmp_path: Path) -> None:
    encoders.sentence_files(tmp_path, "mean_tokens")
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": stated}))
    assert sentences_of("m", tmp_path).pooling == ("lasttoken",)


@pytest.mark.parametrize(
    ("file", "content", "fault"),
    [
        ("modules.json", {"a": 1}, "modules.json is no list of modules"),
        ("modules.json", [{"type": "x.Transformer", "path": ""}], "Transformer; Transformer, Pooling and"),
        (
            "modules.json",
            [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "../up"}],
            "pooling is in '../up'; a folder beside",
        ),
        ("1_Pooling/config.json", {}, "1_Pooling/config.json: no mode; one of cls, max"),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "pooling_mode median; one of cls"),
        ("1_Pooling/config.json", {"pooling_mode": "mean", "include_prompt": False}, "include_prompt is false"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length is 0"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case; a tokenizer that lowers"),
        ("config_sentence_transformers.json", {"prompts": {"a": 1}}, "prompts are texts by name"),
        ("config_sentence_transformers.json", {"default_prompt_name": "a"}, "default_prompt_name one of the names"),
    ],
)
def test_what_is_not_followed_is_refused(file: str, content: Any, fault: str, tmp_path: Path) -> None:
    encoders.sentence_files(tmp_path, "mean_tokens")
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(LoadError, match=fault):
        sentences_of("m", tmp_path)


def test_a_bundle_does_what_they_say(tmp_path: Path) -> None:
    """Through the whole line: vectors of length 1, at most nine tokens, and the default prompt before each text."""
    _, model = encoders.write(tmp_path, "bert")
    encoders.sentence_files(
        tmp_path / "model", "cls_token", normalize=True, longest=9, prompts=PROMPTS, default_prompt_name="query"
    )
    texts = ["the cat", "a dog sat on the mat and it ran under a tree"]

    def expected(prompt: str) -> Any:
        found = []
        for each in encoders.ids_of([prompt + text for text in texts], most=9):
            state = encoders.states_alone(model, each)[0].numpy()
            found.append(state / np.linalg.norm(state))
        return np.stack(found)

    with runtime.load_encoder(encoders.compiled(tmp_path).path) as session:
        assert session.max_tokens == 9
        assert_close(session.embed(texts, truncate=True), expected("red "), **ENGINE)
        assert_close(session.embed(texts, prompt="passage", truncate=True), expected("blue "), **ENGINE)
        with pytest.raises(runtime.RequestError, match=r"texts\[1\]: 15 tokens; at most 9"):
            session.embed(texts)

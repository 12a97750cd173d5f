"""`encoder.json` is read as it was written, or refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from adaptc.runtime import BundleError
from adaptc.runtime.encoding.spec import EncoderSpec, SoundSpec, TextSpec, read_encoder_spec

TEXT = EncoderSpec(TextSpec(9, 21, 0, {"query": "q: "}, "query"), None, (), "none")
SOUND = EncoderSpec(None, SoundSpec(16000, 16000, 400, 160, 80), (), "none")


@pytest.mark.parametrize("spec", [TEXT, SOUND, replace(TEXT, labels=("a", "b"), activation="sigmoid")])
def test_it_is_read_as_it_was_written(spec: EncoderSpec) -> None:
    assert read_encoder_spec(spec.to_json(), "encoder.json") == spec


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"text": None}, "one of text and sound is needed"),
        ({"sound": {"sampling_rate": 1, "samples": 1, "window": 1, "hop": 1, "mels": 1}}, "one of text and sound"),
        ({"activation": "tanh"}, "activation"),
        ({"text": {**json.loads(TEXT.to_json())["text"], "max_tokens": 0}}, "text.max_tokens: 0; 1 to"),
        ({"text": {**json.loads(TEXT.to_json())["text"], "pad_token_id": 21}}, "another padding"),
        ({"more": 1}, "more"),
    ],
)
def test_a_damaged_one_is_refused(change: dict[str, object], fault: str) -> None:
    content = json.dumps(json.loads(TEXT.to_json()) | change).encode()
    with pytest.raises(BundleError, match=rf"encoder\.json: .*{fault}.*compile again"):
        read_encoder_spec(content, "encoder.json")

"""An encoder that can be computed by hand: a text's vector is the sum of its ids, its length, and of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from adaptc.runtime import EncoderSession, FakeEngine, TensorSpec, Tokenizer
from adaptc.runtime.encoding.spec import EncoderSpec, TextSpec

MAX_TOKENS = 9
VOCAB = 21
PROMPTS = {"query": "cat ", "passage": "dog "}


def run(feeds: Mapping[str, Any], outputs: Mapping[str, Any], shapes: list[tuple[int, int]] | None) -> None:
    """What the graph gives; the shapes that it saw are added to `shapes`."""
    ids, mask = feeds["input_ids"], feeds["attention_mask"]
    if shapes is not None:
        shapes.append(ids.shape)
    seen = (ids * mask).sum(1)
    second = (feeds["token_type_ids"] * mask).sum(1)
    outputs["embedding"][:] = np.stack([seen, mask.sum(1), second], 1)


def session(
    shapes: list[tuple[int, int]] | None = None, *, labels: tuple[str, ...] = (), default: str = "", **more: Any
) -> EncoderSession:
    """A session of it, whose tokenizer has words between [CLS] and [SEP]."""
    inputs = tuple(
        TensorSpec(name, "int64", ("batch", "tokens")) for name in ("input_ids", "attention_mask", "token_type_ids")
    )
    outputs = (TensorSpec("embedding", "float32", ("batch", 3)),)
    engine = FakeEngine(inputs, outputs, lambda feeds, outputs: run(feeds, outputs, shapes))
    text = TextSpec(MAX_TOKENS, VOCAB, 0, PROMPTS, default)
    return EncoderSession(engine, EncoderSpec(text, None, labels, "softmax" if labels else "none"), **more)


def with_tokenizer(**options: Any) -> EncoderSession:
    """The same with the tokenizer of `tests/models/encoders.py`, which needs no torch."""
    from tests.models.word_tokenizer import tokenizer

    files = {"tokenizer.json": tokenizer().to_str().encode(), "tokenizer_config.json": b"{}"}
    return session(tokenizer=Tokenizer(files), **options)

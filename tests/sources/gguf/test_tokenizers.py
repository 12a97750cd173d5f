"""Ids are llama.cpp's: for each way of splitting text, for scores, for what is put around a text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from adaptc.errors import LoadError
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.sources.find import find_source
from adaptc.sources.gguf.splits import SPLITS
from adaptc.spec.schema import ModelSpec
from tests.models.gguf_file import Tokens, tiny_model, write
from tests.models.llama_cpp import LlamaCpp, needs_llama_cpp
from tests.sources.gguf.vocabularies import SPECIAL, byte_level, sentencepiece, texts

# One name for each way of splitting, and the others, which are asked less.
FIRST = {splits: name for name, splits in reversed(list(SPLITS.items()))}


def carrier(path: Path, tokens: Tokens, **keys: Any) -> Path:
    """A model of one layer that carries a vocabulary."""
    model = tiny_model("llama", len(tokens.texts), hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    return write(path, model, "llama", tokens, keys)


def tokenizer(path: Path) -> Tokenizer:
    return Tokenizer(find_source(ModelSpec(source=str(path)), path.parent).tokenizer_files())


def differences(path: Path, llama_cpp: LlamaCpp, lines: list[str]) -> dict[str, tuple[list[int], list[int]]]:
    """The texts whose ids are not llama.cpp's, with both."""
    ours = tokenizer(path)
    wanted = llama_cpp.tokenize(path, lines)
    return {line: (ids, found) for line, ids in zip(lines, wanted, strict=True) if (found := ours.encode(line)) != ids}


@needs_llama_cpp
@pytest.mark.parametrize("pre", sorted(SPLITS))
def test_byte_level_ids_are_llama_cpp_s(pre: str, tmp_path: Path, llama_cpp: LlamaCpp) -> None:
    lines = texts(60 if pre == FIRST[SPLITS[pre]] else 8, SPECIAL, seed=len(pre))
    assert differences(carrier(tmp_path / "m.gguf", byte_level(pre)), llama_cpp, [*lines, " tiger", "a tiger"]) == {}


@needs_llama_cpp
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"add_space_prefix": False},
        {"add_space_prefix": True, "add_bos_token": False},
        {"add_eos_token": True},
        {"add_bos_token": False, "add_eos_token": True, "add_space_prefix": False},
    ],
    ids=str,
)
def test_sentencepiece_ids_are_llama_cpp_s(more: dict[str, bool], tmp_path: Path, llama_cpp: LlamaCpp) -> None:
    tokens = sentencepiece(**{f"ggml.{key}": value for key, value in more.items()})
    runs = ["=" * length + " " * length + "\n" * length for length in range(1, 20)]
    lines = [*texts(150, SPECIAL, seed=len(more)), *runs]
    assert differences(carrier(tmp_path / "m.gguf", tokens), llama_cpp, lines) == {}


@needs_llama_cpp
@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "chatglm-bpe"])
@pytest.mark.parametrize("add", [None, False, True])
def test_bos_and_eos_are_llama_cpp_s(pre: str, add: bool | None, tmp_path: Path, llama_cpp: LlamaCpp) -> None:
    more = {} if add is None else {"ggml.add_bos_token": add, "ggml.add_eos_token": add}
    path = carrier(tmp_path / "m.gguf", byte_level(pre, **more))
    assert differences(path, llama_cpp, ["", "the cat", "<s>the cat</s>"]) == {}


@needs_llama_cpp
def test_special_tokens_are_found_by_their_texts_whatever_kind_is_stated(tmp_path: Path, llama_cpp: LlamaCpp) -> None:
    tokens = byte_level("qwen2")
    stated = dataclasses.replace(tokens, kinds=[1] * len(tokens.kinds))
    path = carrier(tmp_path / "m.gguf", stated)
    assert differences(path, llama_cpp, ["a<|im_end|>b", "a<tool>b", "<s>a</s>", "[INST]"]) == {}


@needs_llama_cpp
def test_texts_of_answers_are_llama_cpp_s(tmp_path: Path, llama_cpp: LlamaCpp) -> None:
    for number, tokens in enumerate([byte_level("qwen2"), sentencepiece()]):
        path = carrier(tmp_path / f"{number}.gguf", tokens)
        ours = tokenizer(path)
        for line in ["the cat sat", "日本語 123", " x<tool>y", "\n\n a"]:
            ids = [token for token in ours.encode(line) if tokens.kinds[token] != 3]
            assert ours.decode(ids) == llama_cpp.text(path, ids)


def test_scores_that_leave_the_order_open_are_refused(tmp_path: Path) -> None:
    tokens = sentencepiece()
    path = carrier(tmp_path / "m.gguf", dataclasses.replace(tokens, scores=[-1000.0] * len(tokens.texts)))
    with pytest.raises(LoadError, match="gives one score to tokens that overlap"):
        tokenizer(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": lambda texts: [*texts[:-1], texts[0]]}, "tokens has '<unk>' twice"),
        ({"texts": lambda texts: [*texts, "<a>b", "b<ccc>"], "kinds": lambda k: [*k, 4, 4]}, "overlap in"),
        ({"merges": lambda merges: ["a b", "Ġ Q", *merges]}, "which makes no token"),
        ({"merges": lambda _: None}, "no tokenizer.ggml.merges"),
        ({"kinds": lambda kinds: kinds[:-1]}, "has not a number for each"),
        ({"model": lambda _: "bert"}, "model 'bert' is not supported; there are gpt2, llama"),
        ({"pre": lambda _: "kimi-k2"}, "pre 'kimi-k2' cannot be rebuilt exactly"),
    ],
)
def test_refuses_vocabularies_that_cannot_be_rebuilt(change: Any, message: str, tmp_path: Path) -> None:
    tokens = byte_level("qwen2")
    changed = dataclasses.replace(tokens, **{key: make(getattr(tokens, key)) for key, make in change.items()})
    with pytest.raises(LoadError, match=message) as caught:
        tokenizer(carrier(tmp_path / "m.gguf", changed))
    assert "\n" not in str(caught.value)

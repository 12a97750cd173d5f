"""Rebuild a tokenizer from a GGUF file's metadata, as Hugging Face files that give llama.cpp's ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from adaptc.errors import LoadError, foreign
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.sources.chat_templates import template_files
from adaptc.sources.gguf.byte_level import byte_level
from adaptc.sources.gguf.file import GgufFile
from adaptc.sources.gguf.kinds import MATCHED_WHOLE, Kind
from adaptc.sources.gguf.sentencepiece import sentencepiece
from adaptc.sources.gguf.templates import chat_templates
from adaptc.sources.gguf.vocabulary import Vocabulary, read_vocabulary

# llama.cpp drops white space behind special tokens for models that are called so.
_STRIPPED_NAMES = ("phi-3", "phi3")
_NOT_STRIPPED = ("<unk>", "<s>", "<|endoftext|>")


@lru_cache(maxsize=2)  # a large vocabulary takes a second or two, and a compile asks for it several times
def rebuilt_tokenizer(file: GgufFile) -> Mapping[str, bytes]:
    """Return `tokenizer.json`, `tokenizer_config.json` and a file for each chat template.

    Raises:
        LoadError: the file's tokenizer is of a kind that cannot be rebuilt exactly.
    """
    vocabulary = read_vocabulary(file)
    files = {
        "tokenizer.json": _tokenizer_json(file, vocabulary).encode(),
        "tokenizer_config.json": (json.dumps(_config(vocabulary), indent=2, ensure_ascii=False) + "\n").encode(),
    }
    with foreign(f"{file.path}: its tokenizer cannot be rebuilt"):
        Tokenizer(files, str(file.path))
    return MappingProxyType(files | template_files(str(file.path), chat_templates(file, vocabulary)))


def _config(vocabulary: Vocabulary) -> dict[str, Any]:
    named = {
        "bos_token": vocabulary.text(vocabulary.bos),
        "eos_token": vocabulary.text(vocabulary.eos),
        "unk_token": vocabulary.text(vocabulary.unknown),
        "pad_token": vocabulary.text(vocabulary.pad),
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{role: text for role, text in named.items() if text is not None},
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
    }


def _tokenizer_json(file: GgufFile, vocabulary: Vocabulary) -> str:
    parts = sentencepiece(file, vocabulary) if vocabulary.model == "llama" else byte_level(file, vocabulary)
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(file, vocabulary),
        **parts,
        "post_processor": _around(vocabulary),
    }
    return json.dumps(content, ensure_ascii=False)


def _added_tokens(file: GgufFile, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Tokens that are found by their text; control tokens are left out of an answer's text."""
    _refuse_overlaps(file, [text for text, kind in vocabulary.texts_and_kinds() if kind in MATCHED_WHOLE])
    name = str(file.get("general.name", str, "")).lower()
    stripped = any(each in name for each in _STRIPPED_NAMES)
    return [
        {
            "id": token,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": stripped and text not in _NOT_STRIPPED,
            "normalized": False,
            "special": kind is not Kind.USER_DEFINED,
        }
        for token, (text, kind) in enumerate(vocabulary.texts_and_kinds())
        if kind in MATCHED_WHOLE
    ]


def _refuse_overlaps(file: GgufFile, texts: Sequence[str]) -> None:
    """Refuse special tokens of which a text may have two that overlap, the shorter one first.

    llama.cpp finds the longer one then, a tokenizer.json the one that begins first.
    """
    there = set(texts)
    by_start: dict[str, list[str]] = {}
    for text in texts:
        for length in range(1, len(text)):
            by_start.setdefault(text[:length], []).append(text)
    for text in texts:
        for shared in range(1, len(text)):
            for other in by_start.get(text[-shared:], ()):
                both = text + other[shared:]
                longer_at_start = any(both[:length] in there for length in range(len(text) + 1, len(both) + 1))
                if other != text and len(other.encode()) >= len(text.encode()) and not longer_at_start:
                    raise LoadError(
                        f"{file.path}: special tokens {text!r} and {other!r} overlap in {both!r}; such a vocabulary "
                        "cannot be rebuilt exactly, give its Hugging Face folder instead"
                    )


def _around(vocabulary: Vocabulary) -> dict[str, Any] | None:
    """What puts BOS before a text and EOS after it."""
    before = [vocabulary.bos] if vocabulary.add_bos and vocabulary.bos is not None else []
    after = [vocabulary.eos] if vocabulary.add_eos and vocabulary.eos is not None else []
    if not before and not after:
        return None

    def pieces(name: str, place: int) -> list[dict[str, Any]]:
        special = [{"SpecialToken": {"id": vocabulary.tokens[token], "type_id": place}} for token in (*before, *after)]
        return [*special[: len(before)], {"Sequence": {"id": name, "type_id": place}}, *special[len(before) :]]

    return {
        "type": "TemplateProcessing",
        "single": pieces("A", 0),
        "pair": [*pieces("A", 0), *pieces("B", 1)],
        "special_tokens": {
            text: {"id": text, "ids": [token], "tokens": [text]}
            for token in (*before, *after)
            for text in [vocabulary.tokens[token]]
        },
    }

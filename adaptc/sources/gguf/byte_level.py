"""A byte-level vocabulary, as GPT-2 has it, in the parts of a tokenizer.json."""

from __future__ import annotations

import re
from typing import Any

from adaptc.errors import LoadError
from adaptc.runtime.text.tokenizer import BYTE_OF_LETTER
from adaptc.sources.gguf.file import GgufFile
from adaptc.sources.gguf.splits import SPLITS
from adaptc.sources.gguf.vocabulary import Vocabulary

# Bytes that no UTF-8 text has.
_NEVER = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})


def byte_level(file: GgufFile, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the model, the pre-tokenizer and the decoder of a byte-level vocabulary.

    Raises:
        LoadError: a merge makes what is no token, which only llama.cpp can take apart again.
    """
    splits = SPLITS[vocabulary.pre]
    ids = {text: token for token, text in enumerate(vocabulary.tokens)}
    missing = sorted(_letters() - ids.keys())
    steps: list[dict[str, Any]] = [_split(pattern) for pattern in splits.patterns]
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False})
    if missing:
        # llama.cpp drops a byte that no token spells; its neighbours must not meet in its place.
        steps.append(_split(f"[{''.join(map(re.escape, missing))}]"))
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": splits.whole_words,
            "vocab": ids,
            "merges": _merges(file, ids, set(missing)),
        },
    }


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _letters() -> set[str]:
    """The letters that spell the bytes of UTF-8 texts."""
    return {letter for letter, byte in BYTE_OF_LETTER.items() if byte not in _NEVER}


def _merges(file: GgufFile, ids: dict[str, int], missing: set[str]) -> list[tuple[str, str]]:
    """The merges that can happen, best first, each once."""
    key = "tokenizer.ggml.merges"
    kept: dict[tuple[str, str], None] = {}
    for merge in file.need(key, list):
        if not isinstance(merge, str):
            raise LoadError(f"{file.path}: {key} is no list of texts; the file is damaged")
        # The first character may itself be a space.
        at = merge.find(" ", 1)
        if at < 0:
            continue
        first, second = merge[:at], merge[at + 1 :]
        parts_are_there = first in ids and second in ids
        if (parts_are_there and first + second not in ids) or {first, second} & missing:
            raise LoadError(
                f"{file.path}: {key} joins {first!r} and {second!r}, which makes no token; such a vocabulary cannot be "
                "rebuilt exactly, give its Hugging Face folder instead"
            )
        if parts_are_there:  # else nothing ever makes one of its parts
            kept.setdefault((first, second))
    return list(kept)

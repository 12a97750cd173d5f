"""A model's tokens and their ids, to tell whether models share a vocabulary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from adaptc.errors import foreign
from adaptc.sources.base import Source


def vocabulary(source: Source) -> str:
    """Return a hash of a model's tokens and their ids, as 64 hex digits.

    Raises:
        LoadError: it has no tokenizer, or a damaged one.
    """
    return hash_of(tokens_of(source))


def hash_of(tokens: Mapping[str, int]) -> str:
    """Return a hash of tokens and their ids, as 64 hex digits."""
    return hashlib.sha256(json.dumps(sorted(tokens.items())).encode()).hexdigest()


def tokens_of(source: Source) -> dict[str, int]:
    """Return a model's tokens and their ids.

    Raises:
        LoadError: it has no tokenizer, or a damaged one.
    """
    from tokenizers import Tokenizer

    content = source.tokenizer_files()["tokenizer.json"].decode()
    with foreign(f"{source.origin}: tokenizer.json cannot be read"):
        ids: dict[str, int] = Tokenizer.from_str(content).get_vocab()
    return ids

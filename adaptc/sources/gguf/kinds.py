"""What a token is, by the numbers of `tokenizer.ggml.token_type`."""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """What a token is to llama.cpp."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


MATCHED_WHOLE = frozenset({Kind.UNKNOWN, Kind.CONTROL, Kind.USER_DEFINED})
"""Kinds of tokens that are found by their text before anything else is done with it."""

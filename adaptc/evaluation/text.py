"""Files to measure on: a text as token ids, cut into windows, and the records of a JSONL file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.errors import RequestError
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.loading import tokenizer_of

Ids = npt.NDArray[np.int64]
"""int64 [tokens]."""


def read_text(path: Path) -> str:
    """Read a text to measure on.

    Raises:
        RequestError: it is not there, not UTF-8, or empty.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise RequestError(f"{path}: cannot read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: byte {error.start} is not UTF-8; convert the text to UTF-8") from error
    if not text.strip():
        raise RequestError(f"{path}: empty; a text to predict is needed")
    return text


def text_ids(bundle: Bundle, path: Path, tokens: int | None = None) -> Ids:
    """Read a text as a bundle's token ids: int64 [tokens].

    Args:
        bundle: Its tokenizer is used; it adds the tokens the model expects around a text.
        path: A UTF-8 file.
        tokens: Use only so many, from the start.

    Raises:
        RequestError: the file cannot be read or is too short, or the bundle has no tokenizer.
    """
    tokenizer = tokenizer_of(bundle)
    if tokenizer is None:
        raise RequestError(f"{bundle.path}: no tokenizer; a text cannot be predicted")
    ids = np.array(tokenizer.encode(read_text(path)), np.int64)[:tokens]
    if len(ids) < 2:
        raise RequestError(f"{path}: {len(ids)} tokens; at least 2 are needed, one to predict the next")
    return ids


def windows(ids: Ids, window: int) -> Iterator[Ids]:
    """Cut a text into pieces of `window` tokens, one after the other; a single token left over is dropped."""
    for start in range(0, len(ids) - 1, window):
        yield ids[start : start + window]


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file, each with the number of its line.

    Raises:
        RequestError: it cannot be read, or a line is no object.
    """
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise RequestError(f"{path}:{number}: not JSON: {error}") from error
            if not isinstance(record, dict):
                raise RequestError(f"{path}:{number}: not an object")
            yield number, record

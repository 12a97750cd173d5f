"""The files of a Hugging Face folder that decide what a model is, and JSON out of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adaptc.errors import LoadError, one_line

SENTENCES = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "[0-9]_*/config.json",
)
"""Patterns of sentence-transformers' files, which say how a text's states become one vector."""

CONFIGS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    *SENTENCES,
)
"""Patterns of files that decide the model, where its answers end, how it takes images, and what its vectors are."""

ADAPTER = "adapter_config.json"
"""What marks the folder of an adapter."""

TOKENIZER = (
    "tokenizer.json",
    "tokenizer.*.json",  # for some versions of transformers: `fast_tokenizer_files` in tokenizer_config.json
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tekken.json",
    "*.model",  # SentencePiece and tiktoken
    "tokenizer.model.*",
    "*.spm",
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
"""Patterns of the files from which transformers makes a tokenizer and its chat templates."""


def deciding_files(folder: Path) -> dict[str, Path]:
    """Return the files that decide config, tokenizer and prompts, by their names in the folder."""
    found = {path for pattern in (*CONFIGS, *TOKENIZER) for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): path for path in sorted(found)}


def read_bytes(origin: str, path: Path) -> bytes:
    """Return a file's content.

    Raises:
        LoadError: it cannot be read.
    """
    if not path.is_file():  # reading a pipe would wait for its writer
        raise LoadError(f"{origin}: {path.name} is not a file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise LoadError(f"{origin}: {path.name} cannot be read: {error.strerror}") from error


def read_object(origin: str, path: Path, *, needed: bool = False) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if the file is not there.

    Args:
        origin: The model's name in the spec, for errors.
        path: The file.
        needed: Whether it must be there.

    Raises:
        LoadError: it is needed and not there, cannot be read, or is no JSON object of finite numbers.
    """
    if not path.exists():
        if needed:
            raise LoadError(f"{origin}: {path.parent} has no {path.name}; a Hugging Face model folder has one")
        return {}
    try:
        values = json.loads(read_bytes(origin, path), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{origin}: {path.name} is not JSON: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise LoadError(f"{origin}: {path.name} is not a JSON object")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")

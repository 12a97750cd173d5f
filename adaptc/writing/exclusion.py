"""Texts of evaluations, which no written request may be like."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from adaptc.errors import RequestError
from adaptc.evaluation.harness.arithmetic import word_problems
from adaptc.evaluation.harness.checked import requests
from adaptc.evaluation.text import read_text


def excluded(files: Sequence[Path] = ()) -> list[str]:
    """Return the texts that are left out of what is written: our own evaluation's, and those of files.

    Args:
        files: JSON lines or YAML, of which every text counts, keys included; of any other file every line.

    Raises:
        RequestError: one cannot be read.
    """
    own = [*requests(), *(text for text, _ in word_problems())]
    return [*own, *(text for file in files for text in _texts(file))]


def _texts(path: Path) -> Iterator[str]:
    content = read_text(path)
    try:
        if path.suffix in (".jsonl", ".json"):
            lines = content.splitlines() if path.suffix == ".jsonl" else [content]
            for line in lines:
                if line.strip():
                    yield from _strings(json.loads(line))
        elif path.suffix in (".yaml", ".yml"):
            yield from _strings(yaml.load(content, yaml.BaseLoader))
        else:
            yield from content.splitlines()
    except (ValueError, yaml.YAMLError) as error:
        raise RequestError(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}") from error


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)

"""What other commands measured, read from the JSON that they print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptc.runtime.errors import RequestError

RIGHT = "what `adaptc bench`, `eval`, `eval --sweep` or `quality` prints with --json is right"


def read_added(path: Path) -> tuple[str, Mapping[str, Any]]:
    """What a file holds ("sweep", "bench", "quality" or "eval") and its content.

    Raises:
        RequestError: it cannot be read, or holds none of these.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise RequestError(f"{path}: not JSON: {error}; {RIGHT}") from error
    kind = _kind(content)
    if kind is None:
        raise RequestError(f"{path}: no measurement; {RIGHT}")
    return kind, content


def _kind(content: Any) -> str | None:
    if not isinstance(content, dict) or not content:
        return None
    if isinstance(content.get("policies"), dict) and "dense_perplexity" in content:
        return "sweep"
    if isinstance(content.get("results"), dict) and "machine" in content:
        return "bench"
    if "window" in content and ("perplexity" in content or "routes" in content):
        return "eval"
    rows = content.values()
    if all(isinstance(row, dict) and _is_quality(row) for row in rows):
        return "quality"
    return None


def _is_quality(row: Mapping[str, Any]) -> bool:
    """Whether this is a row of `adaptc quality`: what a token reads, a perplexity, or a figure with its interval."""
    figures = (each for each in row.values() if isinstance(each, dict))
    return "bytes_per_token" in row or "perplexity" in row or any("low" in each for each in figures)

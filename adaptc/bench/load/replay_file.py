"""Files of requests, one JSON object a line: what a schedule is written to, and what one is read from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaptc.bench.load.callers import Caller, LoadRequest, user
from adaptc.bench.load.words import random_text
from adaptc.errors import RequestError, one_line
from adaptc.runtime.text_file import read_text
from adaptc.runtime.validation import shown

MOST_SECONDS = 1e7
"""The latest time that counts as one from the start of a run: a date in seconds would be waited for."""

_KEYS = ("time", "prompt", "messages", "prompt_tokens", "max_tokens", "conversation", "pause")


def read_prompts(path: Path) -> tuple[LoadRequest, ...]:
    """The requests of a file, whatever their times.

    Raises:
        RequestError: the file cannot be read, a line is wrong, or there is none.
    """
    return tuple(request for _, request in _requests(path, timed=False))


def read_replay(path: Path, speed: float = 1.0) -> tuple[Caller, ...]:
    """The callers of a file, in the order of their coming.

    Args:
        path: JSON lines with `time` (seconds from the start), one of `prompt`, `messages` and `prompt_tokens`, and
            where wanted `max_tokens`, `conversation` (lines with the same are turns of one) and `pause`.
        speed: How many times as fast as the file says, above 0; pauses stay as they are.

    Raises:
        RequestError: the file cannot be read, a line is wrong, or there is none.
    """
    conversations: dict[object, list[LoadRequest]] = {}
    for key, request in _requests(path, timed=True):
        at = request.time / speed
        conversations.setdefault(key, []).append(LoadRequest(request.messages, request.max_tokens, at, request.pause))
    callers = [Caller(tuple(sorted(turns, key=lambda each: each.time))) for turns in conversations.values()]
    return tuple(sorted(callers, key=lambda caller: caller.time))


def write_replay(callers: Sequence[Caller], path: Path) -> None:
    """Write callers as `read_replay` reads them."""
    lines = []
    for place, caller in enumerate(callers):
        for request in caller.requests:
            line: dict[str, Any] = {"time": round(request.time, 6)}
            first = request.messages[0]
            if len(request.messages) == 1 and first["role"] == "user" and isinstance(first["content"], str):
                line["prompt"] = first["content"]
            else:
                line["messages"] = list(request.messages)
            if request.max_tokens is not None:
                line["max_tokens"] = request.max_tokens
            if len(caller.requests) > 1:
                line["conversation"] = place
            if request.pause:
                line["pause"] = request.pause
            lines.append(json.dumps(line, ensure_ascii=False))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _requests(path: Path, *, timed: bool) -> Iterator[tuple[object, LoadRequest]]:
    """Pairs of a conversation's key and a request."""
    lines = read_text(path, "a file of JSON lines").splitlines()
    found = False
    for number, line in enumerate(lines, 1):
        if line.strip():
            found = True
            yield _request(f"{path}:{number}", number, line, timed)
    if not found:
        raise RequestError(f"{path}: empty; JSON lines with `prompt` or `messages` are needed")


def _request(where: str, number: int, text: str, timed: bool) -> tuple[object, LoadRequest]:
    """One line."""
    try:
        line = json.loads(text)
    except ValueError as error:
        raise RequestError(f"{where}: not JSON: {one_line(error)}; an object on each line is needed") from error
    if isinstance(line, str):
        line = {"prompt": line}
    if not isinstance(line, dict) or sum(each in line for each in ("prompt", "messages", "prompt_tokens")) != 1:
        raise RequestError(f"{where}: one of `prompt`, `messages` and `prompt_tokens` is needed")
    if timed and (unknown := [key for key in line if key not in _KEYS]):
        raise RequestError(f"{where}: {shown(unknown[0])} is not known; there are: {', '.join(_KEYS)}")
    if timed and "time" not in line:
        raise RequestError(f"{where}: no `time`; seconds from the start of the run are needed")
    # Turns of one conversation are found by its name; all others stand alone.
    key = ("line", number) if line.get("conversation") is None else ("conversation", json.dumps(line["conversation"]))
    seconds = [_seconds(where, name, line.get(name, 0)) for name in ("time", "pause")]
    return key, LoadRequest(_messages(where, number, line), _count(where, line, "max_tokens"), *seconds)


def _messages(where: str, number: int, line: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """What a line says: a prompt, messages, or as many random words as it names tokens."""
    if "prompt_tokens" in line:
        tokens = _count(where, line, "prompt_tokens")
        assert tokens is not None
        return (dict(user(random_text(np.random.default_rng([number]), tokens))),)
    if "prompt" in line:
        if not isinstance(line["prompt"], str) or not line["prompt"]:
            raise RequestError(f"{where}: prompt: {shown(line['prompt'])}; a text is needed")
        return (dict(user(line["prompt"])),)
    messages = line["messages"]
    right = isinstance(messages, list) and messages
    if not right or not all(isinstance(each, dict) and {"role", "content"} <= each.keys() for each in messages):
        raise RequestError(
            f"{where}: messages: {shown(messages)}; a list of objects with `role` and `content` is needed"
        )
    return tuple(messages)


def _count(where: str, line: dict[str, Any], name: str) -> int | None:
    value = line.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**7):
        raise RequestError(f"{where}: {name}: {shown(value)}; a whole number from 1 is needed")
    return value


def _seconds(where: str, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MOST_SECONDS:
        raise RequestError(f"{where}: {name}: {shown(value)}; seconds from 0 to {MOST_SECONDS:g} are needed")
    return float(value)

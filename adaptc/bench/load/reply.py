"""What came back for a request: the bytes with their times, and what they say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from adaptc.errors import one_line


@dataclass(frozen=True, slots=True)
class Received:
    """What came over the wire.

    Attributes:
        status: HTTP's; None if there was no answer.
        kind: The content type, in lower case, without parameters.
        pieces: Pairs of when something came, in seconds of `perf_counter`, and what.
        failure: Why it ended too early: a kind of error such as "timeout"; None if it did not.
        detail: What the library says of it.
    """

    status: int | None = None
    kind: str = ""
    pieces: tuple[tuple[float, bytes], ...] = ()
    failure: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as a client sees it.

    Attributes:
        error: Kind of error, the same words for all of a kind; None for a complete answer.
        detail: The error in the server's words, on one line.
        text: What was written.
        times: When each chunk with text came, in seconds of `perf_counter`; if none had any, when the end was told.
        finish_reason: Why it ended, in the server's word.
        prompt_tokens: Tokens read, as the server counts them; None if it does not say.
        tokens: Tokens written, the same.
        cached_tokens: Tokens of the prompt that the server knew.
        trace: adaptc's own account of the request; empty from other servers.
    """

    error: str | None = None
    detail: str = ""
    text: str = ""
    times: tuple[float, ...] = ()
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    tokens: int | None = None
    cached_tokens: int | None = None
    trace: Mapping[str, Any] = field(default_factory=dict)


class _MalformedError(Exception):
    """An event is not what OpenAI's API sends."""


def read_reply(received: Received) -> Reply:
    """What bytes say; whatever a server sends, this raises nothing."""
    whole = b"".join(piece for _, piece in received.pieces)
    if received.failure is not None and not whole.rstrip().endswith(b"data: [DONE]"):
        return Reply(received.failure, received.detail)
    if received.status != 200:
        return Reply(f"status {received.status}", _error_text(whole))
    if received.kind != "text/event-stream":
        return Reply("not a stream", f"{received.kind or 'no content type'}: {one_line(_shown(whole))}")
    reading = _Reading()
    try:
        for event in _events(received.pieces):
            reading.take(*event)
    except _MalformedError as error:
        return Reply("malformed event", str(error))
    return reading.reply()


def _events(pieces: tuple[tuple[float, bytes], ...]) -> Iterator[tuple[float, str, str]]:
    """Events as when each was complete, its name and its data; comments and other fields are left out."""
    name, data, rest = "", [], b""
    # What ends a last event that its server left open comes with the last piece.
    for time, piece in (*pieces, (pieces[-1][0] if pieces else 0.0, b"\n\n")):
        # Where "\r\n" is torn in two an empty line more ends an event, and none too early: each has one line of data.
        *lines, rest = (rest + piece).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[5:].decode("utf-8", "replace").strip())
            elif line.startswith(b"event:"):
                name = line[6:].decode("utf-8", "replace").strip()
            elif not line and data:
                yield time, name, "\n".join(data)
                name, data = "", []


class _Reading:
    """An answer while its events are read."""

    def __init__(self) -> None:
        self._done = False
        self._text: list[str] = []
        self._times: list[float] = []
        self._finished: tuple[float, str] | None = None
        self._usage: dict[str, Any] = {}
        self._trace: dict[str, Any] = {}
        self._error: str | None = None

    def take(self, time: float, name: str, data: str) -> None:
        """Read one event.

        Raises:
            _MalformedError: it is none of OpenAI's.
        """
        if data == "[DONE]":
            self._done = True
            return
        try:
            event = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _MalformedError(f"not JSON: {one_line(_shown(data.encode()))}") from error
        if isinstance(event, dict) and (name == "error" or event.get("error")):
            self._error = _message(event)
            return
        if not isinstance(event, dict) or not isinstance(event.get("choices", []), list):
            raise _MalformedError(one_line(data))
        if isinstance(event.get("usage"), dict):
            self._usage = event["usage"]
        if isinstance(event.get("adaptc"), dict):
            self._trace = event["adaptc"]
        for choice in event.get("choices", [])[:1]:
            if not isinstance(choice, dict):
                raise _MalformedError(one_line(data))
            if text := _text_of(choice):
                self._text.append(text)
                self._times.append(time)
            if choice.get("finish_reason"):
                self._finished = time, str(choice["finish_reason"])

    def reply(self) -> Reply:
        """The answer, or what is wrong with it."""
        if self._error is not None:
            return Reply("error event", self._error)
        if self._finished is None and not (self._done and self._times):
            return Reply("no end", "the stream ended without a `finish_reason` and without [DONE]")
        when, reason = self._finished or (self._times[-1], None)
        details = self._usage.get("prompt_tokens_details")
        return Reply(
            text="".join(self._text),
            times=tuple(self._times) or (when,),
            finish_reason=reason,
            prompt_tokens=_count(self._usage, "prompt_tokens"),
            tokens=_count(self._usage, "completion_tokens"),
            cached_tokens=_count(details, "cached_tokens") if isinstance(details, dict) else None,
            trace=self._trace,
        )


def _text_of(choice: dict[str, Any]) -> str:
    """What a choice of a chunk adds: text, reasoning, or a piece of a tool's call."""
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return choice["text"] if isinstance(choice.get("text"), str) else ""
    written = [delta.get(key) for key in ("reasoning_content", "reasoning", "content")]
    text = "".join(each for each in written if isinstance(each, str))
    return text or (json.dumps(delta["tool_calls"]) if delta.get("tool_calls") else "")


def _count(usage: dict[str, Any], key: str) -> int | None:
    value = usage.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _error_text(body: bytes) -> str:
    """What a body says went wrong."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    return _message(found) if isinstance(found, dict) else one_line(_shown(body))


def _message(body: dict[str, Any]) -> str:
    """An error in OpenAI's shape, or in one of those that other servers have."""
    error = body.get("error", body.get("detail", body.get("message", body)))
    return one_line(error.get("message", error) if isinstance(error, dict) else error)


def _shown(body: bytes) -> str:
    text = body[:400].decode("utf-8", "replace")
    return "".join(each if each.isprintable() else " " for each in text)

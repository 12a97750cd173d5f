"""Who asks a server, what and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]
"""A message as OpenAI's API has it: `role` and `content`."""


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One request of a caller.

    Attributes:
        messages: What it adds to the caller's conversation; earlier messages and answers are sent before them.
        max_tokens: Tokens to write at most; None leaves it to the server.
        time: Seconds from the start of the run before which it is not sent.
        pause: Seconds between the answer before it and this one, in which a person would read.
    """

    messages: tuple[Message, ...]
    max_tokens: int | None = None
    time: float = 0.0
    pause: float = 0.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Someone who comes once, and asks one request after another, each after the answer to the one before.

    Attributes:
        requests: At least one; the time of the first is when the caller comes.
    """

    requests: tuple[LoadRequest, ...]

    @property
    def time(self) -> float:
        """When the caller comes, in seconds from the start of the run."""
        return self.requests[0].time


def user(text: str) -> Message:
    """A message of a user."""
    return {"role": "user", "content": text}


def prompt_of(messages: tuple[Message, ...]) -> str:
    """Messages as one text, for an endpoint that takes a prompt: their contents, an empty line between them."""
    return "\n\n".join(str(message["content"]) for message in messages)

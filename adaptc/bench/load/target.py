"""The servers that are measured: where they are, and what is sent to each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from adaptc.bench.load.callers import Message, prompt_of
from adaptc.errors import RequestError
from adaptc.runtime.validation import shown


@dataclass(frozen=True, slots=True)
class LoadTarget:
    """A server, and how it is asked.

    Attributes:
        name: What its figures are called.
        url: Where it answers, without a path of the API.
        chat: Whether chats are asked for, else completions.
        model: The model's name; None for the first that the server lists.
        body: Further fields of each request; they come before what the load says.
        exact: Whether `min_tokens` asks for exactly as many tokens as are wanted.
        key: An API key.
    """

    name: str
    url: str
    chat: bool = True
    model: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = False
    key: str | None = field(default=None, repr=False)

    @property
    def path(self) -> str:
        """Where requests go."""
        return f"{self.url}/v1/{'chat/completions' if self.chat else 'completions'}"

    @property
    def headers(self) -> dict[str, str]:
        """Headers of each request."""
        # Compressed events would wait for each other in a proxy.
        plain = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        return plain | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    def request(self, messages: Sequence[Message], max_tokens: int | None) -> bytes:
        """The body of a request."""
        body: dict[str, Any] = {"model": self.model}
        if self.chat:
            body["messages"] = list(messages)
        else:
            body["prompt"] = prompt_of(tuple(messages))
        if max_tokens is not None:
            body |= {"max_tokens": max_tokens} | ({"min_tokens": max_tokens} if self.exact else {})
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        return json.dumps(body | dict(self.body)).encode()


def base_url(text: str) -> str:
    """The address of a server, however much of its API's path was given.

    Raises:
        RequestError: it is none.
    """
    url = text.rstrip("/")
    for path in ("/chat/completions", "/completions", "/v1"):
        url = url.removesuffix(path)
    try:
        parts = urlsplit(url)
        right = parts.scheme in {"http", "https"} and parts.hostname and not parts.query and not parts.fragment
        _ = parts.port
    except ValueError:
        right = False
    if not right:
        raise RequestError(f"--serve: {shown(text)}; an address such as http://127.0.0.1:8000 is needed")
    return url


def split_name(text: str, names: Sequence[str]) -> tuple[str | None, str]:
    """The server that an option is for, and its value; no name is for all of them."""
    name, equals, value = text.partition("=")
    return (name, value) if equals and name in names else (None, text)

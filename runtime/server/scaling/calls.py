"""A request on its way to a replica, and the messages of its answer on their way back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.types import ASGIApp, Message

_SECRET = frozenset({"authorization", "x-api-key", "cookie", "proxy-authorization"})
"""Headers that end at the entrance: replicas are reached through it alone."""

_OWN = frozenset({"host", "content-length", "transfer-encoding", "connection"})
"""Headers that belong to the connection."""


@dataclass(frozen=True, slots=True)
class ReplicaCall:
    """A request as replicas get it.

    Attributes:
        method: Of HTTP.
        path: Of the URL, decoded.
        headers: Names in lower case, and values.
        body: The whole body.
        keys: Of the prompt's beginning, from `prefix_keys`.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    keys: tuple[bytes, ...] = ()

    def scope(self) -> dict[str, Any]:
        """The scope of ASGI."""
        own = [("host", "replica"), ("content-length", str(len(self.body)))]
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": quote(self.path).encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (*self.headers, *own)],
            "client": None,
            "server": None,
        }


def passed_on(headers: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The headers of a client that a replica gets."""
    return tuple((name, value) for name, value in headers if name not in _SECRET | _OWN)


async def answers(app: ASGIApp, call: ReplicaCall) -> AsyncGenerator[list[Message], None]:
    """What an application answers, as it comes; closing this ends the request as a client does that goes away.

    Args:
        app: Asked in this process.
        call: What is asked.

    Returns:
        Messages of ASGI, as many together as are there: each time something is passed on costs as much as a step.
    """
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    given = [{"type": "http.request", "body": call.body, "more_body": False}]

    async def receive() -> Message:
        if given:
            return given.pop()
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it: whoever goes away cancels the task")

    async def send(message: Message) -> None:
        sent.put_nowait(message)

    async def run() -> None:
        try:
            await app(call.scope(), receive, send)
        finally:
            sent.put_nowait(None)

    task = asyncio.ensure_future(run())
    try:
        ended = False
        while not ended:
            together = [await sent.get()]
            while not sent.empty():
                together.append(sent.get_nowait())
            ended = together[-1] is None
            if messages := [each for each in together if each is not None]:
                yield messages
        await task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})

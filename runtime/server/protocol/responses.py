"""Answers over HTTP: bodies, streams of events, and what happens when a client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from time import monotonic
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adaptc.runtime.server.protocol.errors import ApiError
from adaptc.runtime.server.protocol.json_text import compact, read_object

T = TypeVar("T")

_LOOK_SECONDS = 1.0  # how often a stream's reader is looked after


class DisconnectedError(Exception):
    """The client went away before its answer was complete."""


class Json(Response):
    """A JSON body."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """See `Response.render`."""
        return compact(content)


def error_response(error: ApiError) -> Json:
    """An error as an answer."""
    return Json(error.body(), error.status, dict(error.headers))


async def read_body(request: Request, most: int, seconds: float) -> dict[str, object]:
    """The JSON object that a request brings.

    Args:
        request: Of POST.
        most: The largest body, in bytes.
        seconds: The longest time that it may take to arrive.

    Raises:
        ApiError: it is of another kind, too large, or too slow.
        DisconnectedError: the client went away.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also keeps a page in a browser from asking: for this type it would have to be allowed to.
        raise ApiError(415, f"body: {kind[:60] or 'no content type'}; Content-Type: application/json is needed")
    try:
        content = await asyncio.wait_for(_content(request, most), seconds)
    except asyncio.TimeoutError:
        raise ApiError(408, f"body: not complete after {seconds:g} s; send it at once") from None
    return read_object(content)


async def _content(request: Request, most: int) -> bytes:
    too_large = ApiError(
        413, f"body: more than {most} bytes; send less, or serve with a larger --max-body", code="body_too_large"
    )
    length = request.headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length[:20]) > most:
        raise too_large
    content = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        content += message.get("body", b"")
        if len(content) > most:
            raise too_large
        if not message.get("more_body", False):
            return bytes(content)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What some work gives; it is cancelled if the client goes away meanwhile.

    Raises:
        DisconnectedError: the client went away.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise DisconnectedError
        return task.result()
    finally:
        await _ended(task)
        await _ended(gone)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(task: asyncio.Future[Any]) -> None:
    """Cancel a task if it has not ended, and wait until it has."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})


class EventStream(Response):
    """Server-sent events; the client may go away, or stop to read, at any time, and then they end."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], write_seconds: float) -> None:
        """Send nothing yet.

        Args:
            events: Closed in any case.
            write_seconds: The longest time that the client may take nothing.
        """
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._write_seconds = write_seconds
        self._sending: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events.

        Raises:
            DisconnectedError: the client went away, or took nothing for too long.
        """
        pump = asyncio.ensure_future(self._pump(send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            while not pump.done():
                await asyncio.wait({pump, gone}, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                since = self._sending
                if not pump.done() and (gone.done() or (since and monotonic() - since > self._write_seconds)):
                    raise DisconnectedError
            pump.result()
        finally:
            await _ended(pump)
            await _ended(gone)
            await self._events.aclose()

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in self._events:
            self._sending = monotonic()
            await send({"type": "http.response.body", "body": event, "more_body": True})
            self._sending = None
        await send({"type": "http.response.body", "body": b"", "more_body": False})

"""Asking a server over HTTP: what comes is kept with its time, and read later."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

from adaptc.bench.load.reply import Received, read_reply
from adaptc.bench.load.target import LoadTarget
from adaptc.errors import EngineError, one_line

if TYPE_CHECKING:
    import aiohttp

MOST_BYTES = 256 << 20
"""Of an answer; a server that sends more is left."""

_IDLE_SECONDS = 2.0  # servers close idle connections after some seconds, and a request may meet that
_LOST = "connection lost"
_READ_BYTES = 1 << 20  # aiohttp's own 64 KiB hold up answers that come faster than they are looked at


class LoadClient:
    """Connections to one server, as many as are needed at a time; made by `connected`."""

    def __init__(self, session: aiohttp.ClientSession, target: LoadTarget) -> None:
        self._session = session
        self._target = target

    async def ask(self, body: bytes) -> Received:
        """Send a request and take in its answer.

        Nothing that a server or the way to it does is raised; the answer says what happened. A connection that a
        server closed while nothing was under way, as some do after each answer, is found to be closed only by its next
        request: a request that met that is sent once more, and the time counts.
        """
        received = await self._ask(body)
        if received.failure == _LOST and received.status is None:
            received = await self._ask(body)
        return received

    async def _ask(self, body: bytes) -> Received:
        import aiohttp

        status, kind, pieces, size = None, "", [], 0
        target = self._target
        try:
            async with self._session.post(
                target.path, data=body, headers=target.headers, allow_redirects=False
            ) as answer:
                status, kind = answer.status, answer.content_type.lower()
                async for piece in answer.content.iter_any():
                    pieces.append((perf_counter(), piece))
                    size += len(piece)
                    if size > MOST_BYTES:
                        return Received(status, kind, (), "too long", f"more than {MOST_BYTES} bytes")
                if answer.status in range(300, 400):
                    where = one_line(answer.headers.get("Location", "nowhere"))
                    return Received(status, kind, (), f"status {status}", f"it redirects to {where}; --serve that")
        except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError) as error:
            return Received(status, kind, tuple(pieces), *_failure(error, began=status is not None))
        return Received(status, kind, tuple(pieces))

    async def models(self) -> dict[str, Any]:
        """What the server lists under `/v1/models`.

        Raises:
            EngineError: it lists nothing.
        """
        import aiohttp

        url = f"{self._target.url}/v1/models"
        try:
            async with self._session.get(url, headers=self._target.headers, allow_redirects=False) as answer:
                text = await answer.text(errors="replace")
                status = answer.status
        except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError) as error:
            failure, detail = _failure(error, began=False)
            raise EngineError(f"{self._target.name}: {url}: {failure}: {detail}; is the server running?") from error
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        listed = found.get("data") if isinstance(found, dict) else None
        if status != 200 or not isinstance(listed, list) or not listed or not isinstance(listed[0], dict):
            said = read_reply(Received(status, "", ((0.0, text.encode()),))).detail
            told = f"status {status}: {said}" if status != 200 else f"no list of models: {said}"
            right = "--api-key-file is needed" if status in {401, 403} else "--model names one where none is listed"
            raise EngineError(f"{self._target.name}: {url}: {told}; {right}")
        first: dict[str, Any] = listed[0]
        return first


@asynccontextmanager
async def connected(target: LoadTarget, timeout: float) -> AsyncIterator[LoadClient]:
    """A client of a server.

    Args:
        target: The server.
        timeout: Seconds that a request may take in all.
    """
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS)
    limits = aiohttp.ClientTimeout(total=timeout)
    async with aiohttp.ClientSession(connector=connector, timeout=limits, read_bufsize=_READ_BYTES) as session:
        yield LoadClient(session, target)


def _failure(error: BaseException, *, began: bool) -> tuple[str, str]:
    """The kind of an error, and its words."""
    import aiohttp

    said = one_line(error) or type(error).__name__
    if isinstance(error, asyncio.TimeoutError):
        return "timeout", "the answer was not complete in time; --timeout allows more"
    if isinstance(error, aiohttp.ClientConnectorError):
        return ("connection refused" if isinstance(error.os_error, ConnectionRefusedError) else "no connection"), said
    if isinstance(error, (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, OSError)):
        return _LOST, said if began else f"before the answer began: {said}"
    return "not HTTP", said

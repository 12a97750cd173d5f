"""The process of a server: it listens, and ends when it is told to, after what it has begun."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import uvicorn

from adaptc.runtime.errors import RequestError
from adaptc.runtime.server.app import application
from adaptc.runtime.server.connections import protocol_of
from adaptc.runtime.server.endpoints.parts import ServerParts
from adaptc.runtime.server.observing.logs import say

BACKLOG = 2048
"""Connections that may wait to be taken."""

_M_ARENA_MAX = -8  # of malloc.h


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket of an address; nobody is answered before `run` listens on it.

    Raises:
        RequestError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise RequestError(
            f"serve: {host}:{port}: {error.strerror or error}; another --host or --port is needed"
        ) from error
    return found


def keep_memory_together() -> None:
    """Have the C library take memory for all threads from two places, not from one for each few threads.

    What large requests leave free is then used by the next ones: with random clients (tests/attacks/clients.py) a
    server stays at 132 MiB that otherwise grows from 162 to 195.
    """
    if sys.platform == "linux":
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries than GNU's have none
        if set_option is not None:
            set_option(_M_ARENA_MAX, 2)


def url_of(found: socket.socket) -> str:
    """The address of a socket, for clients."""
    host, port = found.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def run(parts: ServerParts, listening: socket.socket) -> None:
    """Answer requests until SIGTERM or SIGINT; then finish what runs, within `drain_seconds`, and refuse the rest.

    A second signal ends at once.

    Args:
        parts: The parts of the server; its models stay open.
        listening: From `bound_socket`.
    """
    asyncio.run(Server(parts, listening).serve())


class Server(uvicorn.Server):
    """A web server that keeps listening while it drains: new requests get an answer that says so."""

    def __init__(self, parts: ServerParts, listening: socket.socket) -> None:
        """Answer nobody yet.

        Args:
            parts: See `run`.
            listening: See `run`.
        """
        config = uvicorn.Config(
            application(parts),
            http=protocol_of(parts.settings.read_seconds),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            limit_concurrency=parts.settings.max_connections,
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=64 << 10,
        )
        super().__init__(config)
        self._parts = parts
        self._listening = listening
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer requests until the process is told to end."""
        await super().serve(sockets or [self._listening])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain at the first signal, end at the second."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, self.end)
        try:
            yield
        finally:
            for each in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(each)

    def end(self) -> None:
        """Begin to drain; the second time, end at once."""
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())
        else:
            self.should_exit = self.force_exit = True

    async def _drain(self) -> None:
        entrance = self._parts.entrance
        say("draining", running=sum(map(entrance.inside, self._parts.models.by_name)))
        cut = await entrance.drain(self._parts.settings.drain_seconds)
        say("ending", cut=cut)
        self.should_exit = True

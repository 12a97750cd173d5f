"""One request at a time: threads and coroutines take turns at a session."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager

from adaptc.runtime.errors import RequestError

_POLL_SECONDS = 0.002  # between looks at a busy session, from a coroutine that must not wait


class Turns:
    """The lock of a session, and when the session may be freed."""

    def __init__(self, free: Callable[[], None]) -> None:
        """Start unlocked.

        Args:
            free: Called once, after `close`, when no request is running.
        """
        self._free: Callable[[], None] | None = free
        self._busy = threading.Lock()
        self._thread: int | None = None  # that began the running request
        self._closed = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn and hold it.

        Raises:
            RequestError: the session is closed, or this thread holds the turn and would wait forever.
        """
        if self._thread == threading.get_ident():
            raise RequestError("session: a stream of this thread is open; finish or close it first")
        self._busy.acquire()
        try:
            self._begin()
            yield
        finally:
            self._end()

    def check(self) -> None:
        """Refuse to go on if the session was closed.

        Raises:
            RequestError: it was.
        """
        if self._closed:
            raise RequestError("session: closed")

    def close(self) -> None:
        """Let no further turn begin; free the session now or after the turn that is running."""
        self._closed = True
        self._free_if_closed()

    async def in_thread(self, pieces: Generator[str, None, None]) -> AsyncGenerator[str, None]:
        """Wait for a turn without blocking the loop, then compute the pieces one by one in a thread.

        Raises:
            RequestError: the session is closed.
        """
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        while not self._busy.acquire(blocking=False):
            await asyncio.sleep(_POLL_SECONDS)
        thread = ThreadPoolExecutor(1, "adaptc-stream")
        try:
            self._begin()
            loop = asyncio.get_running_loop()
            while (piece := await loop.run_in_executor(thread, next, pieces, None)) is not None:
                yield piece
        finally:
            # The worker first ends a step that is still running, and nothing waits for it here. A request from this
            # thread may wait for the turn meanwhile, since the worker needs neither this thread nor its loop.
            self._thread = None
            thread.submit(self._end_stream, pieces)
            thread.shutdown(wait=False)

    def _end_stream(self, pieces: Generator[str, None, None]) -> None:
        try:
            pieces.close()
        finally:
            self._end()

    def _begin(self) -> None:
        self._thread = threading.get_ident()
        self.check()

    def _end(self) -> None:
        self._thread = None
        self._busy.release()
        self._free_if_closed()

    def _free_if_closed(self) -> None:
        if self._closed and self._busy.acquire(blocking=False):
            free, self._free = self._free, None
            self._busy.release()
            if free is not None:
                free()

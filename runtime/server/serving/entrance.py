"""Who is let in: so many requests of a model run or wait, and none begins while the server is ending."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from adaptc.runtime.server.protocol.errors import ApiError, unavailable


class Entrance:
    """Counts the requests of each model.

    Attributes:
        draining: Whether the server is ending.
        refused: Requests that were refused, by reason.
    """

    def __init__(self, max_queue: int) -> None:
        """Start without requests.

        Args:
            max_queue: The largest number of requests of one model that wait, beside those that fit into its batch.
        """
        self.draining = False
        self.refused: dict[str, int] = {}
        self._max_queue = max_queue
        self._inside: dict[str, int] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._seconds: dict[str, float] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def inside(self, model: str) -> int:
        """Requests of a model that run or wait."""
        return self._inside.get(model, 0)

    @contextmanager
    def place(self, model: str, batch: int) -> Iterator[None]:
        """A request's stay, of the task that runs it.

        Args:
            model: The model's name.
            batch: The number of its requests that run together.

        Raises:
            ApiError: 503 while the server is ending, 429 if too many wait.
        """
        if self.draining:
            self._refuse("draining")
            raise unavailable("server: it is ending and takes no further request; ask another one, or later", 5)
        count = self.inside(model)
        if count >= batch + self._max_queue:
            self._refuse("queue")
            seconds = min(60, max(1, math.ceil(self._seconds.get(model, 1.0) * (count + 1 - batch) / batch)))
            raise ApiError(
                429,
                f"server: {count} requests of {model} run or wait, and no more are let in; "
                f"ask again in {seconds} s, or serve with a larger --max-queue",
                code="queue_full",
                headers={"Retry-After": str(seconds)},
            )
        self._inside[model] = count + 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._idle.clear()
        began = monotonic()
        try:
            yield
        finally:
            self._tasks.discard(task)
            self._inside[model] -= 1
            before = self._seconds.get(model)
            took = monotonic() - began
            self._seconds[model] = took if before is None else 0.9 * before + 0.1 * took
            if not self._tasks:
                self._idle.set()

    async def drain(self, seconds: float) -> int:
        """Let no further request in, and wait for those that are inside.

        Args:
            seconds: The longest time to wait; then their tasks are cancelled.

        Returns:
            The number of requests that were cancelled.
        """
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except asyncio.TimeoutError:
            left = tuple(self._tasks)
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=5)
            return len(left)
        return 0

    def _refuse(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1

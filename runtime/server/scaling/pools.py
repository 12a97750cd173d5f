"""Replicas as the entrance sees them, on whatever runs them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

from starlette.types import Message

from adaptc.runtime.server.scaling.calls import ReplicaCall


class LostError(Exception):
    """A replica went away before it had answered, or could not be reached."""


class FullError(Exception):
    """All replicas of a pool have as many requests waiting as they may have."""


class Pool(Protocol):
    """Replicas that are alike, on whatever runs them."""

    def ask(self, call: ReplicaCall) -> AsyncGenerator[Message, None]:
        """Have one of the replicas answer; closing the generator ends the request.

        Raises:
            LostError: the replica went away; what was given before is part of no whole answer.
            FullError: no replica takes it.
        """

    async def metrics(self) -> Mapping[str, str]:
        """What each replica counted, as Prometheus reads it, by the replica's name."""

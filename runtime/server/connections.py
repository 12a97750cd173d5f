"""Connections: the head of a request must arrive in time, as its body must."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class PunctualProtocol(H11Protocol):
    """HTTP/1.1 for clients that have some time to say what they want; uvicorn alone would wait for ever.

    Attributes:
        head_seconds: The longest time from the beginning of a connection, or the first byte after an answer, to the end
            of a request's head.
    """

    head_seconds: float

    _patience: asyncio.TimerHandle | None = None
    _began = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._began = True
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(self.head_seconds, self._end)

    def _stop_waiting(self) -> None:
        self._began = False
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _end(self) -> None:
        if not self.transport.is_closing():
            if self._began:
                self.transport.write(_TOO_SLOW)
            self.transport.close()


def protocol_of(head_seconds: float) -> type[PunctualProtocol]:
    """The protocol with a limit of its own, in seconds; uvicorn makes one for each connection."""
    return type("Protocol", (PunctualProtocol,), {"head_seconds": head_seconds})

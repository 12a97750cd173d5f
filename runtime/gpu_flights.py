"""Steps that were launched and not read yet: the next one is on its way before the host reads the last one's tokens."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from adaptc.runtime.cuda import Cuda
from adaptc.runtime.gpu_graphs import Graphs, Key
from adaptc.runtime.kernels import RING

AHEAD = 2
"""Steps that may be in flight: the one whose token is wanted, and the next."""


@dataclass(frozen=True, slots=True)
class Flight:
    """A step that was launched and not read.

    Attributes:
        slot: Its place in the ring.
        rows: That it writes.
        event: Happens when it is done.
    """

    slot: int
    rows: int
    event: Any


class Flights:
    """The steps of one session, in the order they were launched.

    Attributes:
        slot: Place in the ring of the step launched last.
    """

    def __init__(self, cuda: Cuda, graphs: Graphs, stream: Any) -> None:
        self._cuda, self._graphs, self._stream = cuda, graphs, stream
        self._events = deque(cuda.event() for _ in range(AHEAD + 1))
        self._left: deque[Flight] = deque()
        self.slot = 0

    def __len__(self) -> int:
        return len(self._left)

    @property
    def next(self) -> int:
        """Place in the ring of the step that is launched next."""
        return (self.slot + 1) % RING

    def launch(self, key: Key, graph: Any, rows: int) -> None:
        """Launch a step; without a graph its parts go to the stream one by one."""
        self.slot = self.next
        if graph is None:
            self._graphs.enqueue(key)
        else:
            self._cuda.run(graph, self._stream)
        event = self._events[0]
        self._events.rotate(-1)
        self._cuda.record(event, self._stream)
        self._left.append(Flight(self.slot, rows, event))

    def take(self) -> Flight:
        """Wait for the oldest step."""
        flight = self._left.popleft()
        self._cuda.wait(flight.event)
        return flight

    def drain(self) -> None:
        """Wait for all that was launched; steps that nobody asked for are forgotten."""
        if self._left:
            self._cuda.sync(self._stream)
            self._left.clear()

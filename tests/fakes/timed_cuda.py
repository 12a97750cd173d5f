"""A fake GPU with a clock: each operation takes what it is said to take, and each that the host sends takes a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.fakes.cuda import FakeCuda, FakeKernel, FakeStream


@dataclass(eq=False)
class TimedCuda(FakeCuda):
    """See `FakeCuda`; host and GPU take turns.

    Attributes:
        takes: Seconds of an operation, by name; others take none.
        send: Seconds of the host for each operation, and for each captured graph.
        now: What the clock shows.
    """

    takes: Mapping[str, float] = field(default_factory=dict)
    send: float = 0.0
    now: float = 0.0
    _gate: int = 0

    def submit(self, stream: FakeStream, name: str, work: Callable[[], object]) -> None:
        gate = self._gate

        def timed() -> None:
            runs = np.ones(1, np.uint8)
            if gate:
                self.get(gate, runs)
            self.now += self.takes.get(name, 0.0) if runs[0] else 0.0
            work()

        if stream.capture is None:
            self.now += self.send
        super().submit(stream, name, timed)

    def launch(
        self,
        kernel: FakeKernel,
        grid: tuple[int, ...],
        threads: int,
        args: Sequence[Any],
        stream: FakeStream,
        *,
        early: bool = False,
        shared: int = 0,
    ) -> None:
        self._gate = args[-2][0] if kernel.name.startswith("skinny_gemm") else 0  # reads no weight if its gate says so
        super().launch(kernel, grid, threads, args, stream, early=early, shared=shared)
        self._gate = 0

    def branch(self, stream: FakeStream, handle: int, bodies: int) -> Any:
        inner = super().branch(stream, handle, bodies)
        assert stream.capture is not None
        name, work = stream.capture[-1]

        def timed() -> None:
            self.now += self.takes.get("node", 0.0)
            work()

        stream.capture[-1] = name, timed
        return inner

    def run(self, graph: int, stream: FakeStream) -> None:
        self.now += self.send
        super().run(graph, stream)

"""A GPU made of host memory: it records what it is asked, and runs captured graphs as a GPU would.

Streams run at once; while one captures, what it is given is kept instead. Addresses are real, so kernels and engines
work on them; a conditional node looks at its condition when the graph runs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.driver.device import Device
from adaptc.runtime.backends.cuda.driver.kernel_source import KernelSource
from adaptc.runtime.errors import EngineError
from tests.fakes import cpu_kernels

Operation = tuple[str, Callable[[], object]]


@dataclass(slots=True)
class FakeStream:
    """What it captures, if it does."""

    capture: list[Operation] | None = None

    def __int__(self) -> int:
        """Its address, as an engine is told it."""
        return id(self)


@dataclass(frozen=True, slots=True)
class FakeKernel:
    """A kernel and where it stands."""

    source: KernelSource
    name: str


@dataclass(eq=False)
class FakeCuda(Cuda):
    """See `Cuda`; the same members.

    Attributes:
        log: What was done, in order: allocations, captures, launches.
        live: Memory that was not freed.
    """

    device: Device = field(default_factory=lambda: Device("Fake", 90, 13000, 1 << 30))
    log: list[str] = field(default_factory=list)
    live: dict[int, npt.NDArray[np.uint8]] = field(default_factory=dict)
    conditions: list[bool] = field(default_factory=list)
    closed: bool = False
    limit: int = 1 << 30
    graphs: list[list[Operation]] = field(default_factory=list)

    def submit(self, stream: FakeStream, name: str, work: Callable[[], object]) -> None:
        """Do it now, or keep it if the stream captures."""
        if stream.capture is not None:
            stream.capture.append((name, work))
        else:
            self.log.append(name)
            work()

    def alloc(self, size: int) -> int:
        if sum(map(len, self.live.values())) + size > self.limit:
            raise EngineError("cuda: cannot allocate: out of GPU memory")
        memory = np.zeros(max(size, 1), np.uint8)
        self.live[memory.ctypes.data] = memory
        return memory.ctypes.data

    def free(self, address: int) -> None:
        del self.live[address]

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> tuple[int, npt.NDArray[Any]]:
        array = np.zeros(shape, dtype)
        self.live[array.ctypes.data] = array.view(np.uint8).reshape(-1)
        return array.ctypes.data, array

    def put(self, address: int, array: npt.NDArray[Any]) -> None:
        array = np.ascontiguousarray(array)
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def get(self, address: int, array: npt.NDArray[Any]) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def put_async(self, address: int, array: npt.NDArray[Any], stream: FakeStream) -> None:
        kept = array.copy()
        self.submit(stream, "put", lambda: self.put(address, kept))

    def copy_rows(self, to: tuple[int, int], source: tuple[int, int], width: int, rows: int, stream: Any) -> None:
        def copy() -> None:
            for row in range(rows):
                ctypes.memmove(to[0] + row * to[1], source[0] + row * source[1], width)

        self.submit(stream, "copy_rows", copy)

    def clear(self, address: int, size: int, stream: FakeStream) -> None:
        self.submit(stream, "clear", lambda: bool(ctypes.memset(address, 0, size)))

    def free_bytes(self) -> int:
        return self.limit - sum(map(len, self.live.values()))

    def stream(self) -> FakeStream:
        return FakeStream()

    def event(self, *, timing: bool = False) -> object:
        return object()

    def record(self, event: object, stream: FakeStream) -> None:
        self.submit(stream, "record", lambda: None)

    def wait(self, event: object) -> None:
        self.log.append("wait")

    def sync(self, stream: FakeStream) -> None:
        assert stream.capture is None, "a stream that captures cannot be waited for"

    def kernels(self, source: KernelSource, names: Sequence[str]) -> dict[str, FakeKernel]:
        return {name: FakeKernel(source, name) for name in names}

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
        given = list(args)
        waits = "static void after_previous()" in kernel.source.text
        assert waits or not early, "a kernel that does not wait for the one before it may not begin early"

        def work() -> None:
            # Threads go through a block in strides, so fewer do the same; rows of `begin_step` need one each.
            few = threads if kernel.name == "begin_step" else 1 if waits else min(threads, 4)
            cpu_kernels.run(kernel.source, kernel.name, grid, few, given)
            if kernel.name == "decide" and given[0][0]:
                ran = ctypes.c_uint8.from_address(given[5][0]).value
                self.conditions[given[0][0] - 1] = bool(ran)

        self.submit(stream, kernel.name, work)

    def begin_capture(self, stream: FakeStream) -> None:
        assert stream.capture is None
        stream.capture = []

    def end_capture(self, stream: FakeStream) -> int:
        assert stream.capture is not None
        self.graphs.append(stream.capture)
        stream.capture = None
        self.log.append("captured")
        return len(self.graphs)

    def drop_capture(self, stream: FakeStream) -> None:
        stream.capture = None

    def handle(self, stream: FakeStream) -> int:
        assert stream.capture is not None
        self.conditions.append(False)
        return len(self.conditions)

    def branch(self, stream: FakeStream, handle: int, bodies: int) -> list[list[Operation]]:
        inner: list[list[Operation]] = [[] for _ in range(bodies)]

        def work() -> None:
            side = 0 if self.conditions[handle - 1] else 1
            self._play(inner[side] if side < bodies else [])

        assert stream.capture is not None
        stream.capture.append((f"if[{bodies}]", work))
        return inner

    def begin_body(self, stream: FakeStream, body: list[Operation]) -> None:
        assert stream.capture is None
        stream.capture = body

    def end_body(self, stream: FakeStream) -> None:
        stream.capture = None

    def run(self, graph: int, stream: FakeStream) -> None:
        self.log.append(f"launch {graph}")
        # A graph begins with every condition false.
        self.conditions[:] = [False] * len(self.conditions)
        self._play(self.graphs[graph - 1])

    def drop(self, run: int) -> None:
        self.graphs[run - 1] = []

    def close(self) -> None:
        self.closed = True
        self.live.clear()
        self.graphs.clear()

    def _play(self, operations: list[Operation]) -> None:
        for name, work in operations:
            self.log.append(name)
            work()

"""A graph that continues no sequence on a GPU: arrays of the host go in and come out."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Protocol

import numpy as np

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.engine import Arrays, BoundArrays, BoundRun
from adaptc.runtime.bundle.manifest import TensorSpec
from adaptc.runtime.errors import EngineError


class EngineContext(Protocol):
    """An engine that runs one graph over addresses; `tensorrt.context.Context` is one."""

    def dtype(self, name: str) -> np.dtype[Any]:
        """The type that it has for an input or output."""

    def enqueue(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int], stream: Any) -> None:
        """Run it in the stream's order."""

    def close(self) -> None:
        """Free it."""


class GpuEngine:
    """One graph; see `Engine`. The first size of every tensor is the number of rows."""

    def __init__(
        self,
        cuda: Cuda,
        runner: EngineContext,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        rows: int,
    ) -> None:
        """Take the memory for a run.

        Args:
            cuda: The GPU; closed with this.
            runner: The graph's engine; closed with this.
            inputs: In the graph's order.
            outputs: In the graph's order.
            rows: Most rows of a run; more are run one part after another.

        Raises:
            EngineError: the GPU has too little memory.
        """
        self.inputs, self.outputs = inputs, outputs
        self.rows = rows
        self._cuda, self._runner, self._stream = cuda, runner, cuda.stream()
        self._types = {spec.name: runner.dtype(spec.name) for spec in (*inputs, *outputs)}
        self._places = {
            spec.name: cuda.alloc(rows * prod(map(int, spec.shape[1:])) * self._types[spec.name].itemsize)
            for spec in (*inputs, *outputs)
        }
        self._closed = False

    def bind(self, feeds: Arrays, outputs: Arrays) -> BoundRun:
        """See `Engine.bind`."""
        return _GpuStep(self, feeds, outputs)

    def run(self, feeds: Arrays, outputs: Arrays) -> None:
        """Run over arrays whose rows are at most `rows`.

        Raises:
            EngineError: it failed, or is closed.
        """
        if self._closed:
            raise EngineError(f"{next(iter(outputs))}: its engine is closed")
        for name, array in feeds.items():
            self._cuda.put(self._places[name], array.astype(self._types[name], copy=False))
        self._runner.enqueue({name: array.shape for name, array in feeds.items()}, self._places, self._stream)
        self._cuda.sync(self._stream)
        for name, array in outputs.items():
            found = np.empty(array.shape, self._types[name])
            self._cuda.get(self._places[name], found)
            array[...] = found

    def close(self) -> None:
        """See `Engine.close`."""
        if not self._closed:
            self._closed = True
            self._runner.close()
            self._cuda.close()


class _GpuStep(BoundArrays):
    """Arrays, and the engine that runs over them."""

    def __init__(self, engine: GpuEngine, feeds: Arrays, outputs: Arrays) -> None:
        super().__init__(engine, feeds, outputs)
        self._engine = engine

    def __call__(self) -> None:
        most = self._engine.rows
        for start in range(0, len(next(iter(self.feeds.values()))), most):
            part = slice(start, start + most)
            feeds = {name: array[part] for name, array in self.feeds.items()}
            self._engine.run(feeds, {name: array[part] for name, array in self.outputs.items()})

"""Partitions computed by ONNX Runtime over bare addresses, in place of engines."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from adaptc.runtime.bundle.partitions import PartitionGraph
from tests.fakes.cuda import FakeCuda, FakeStream


class FakeRunner:
    """See `PartitionRunner`."""

    def __init__(
        self,
        cuda: FakeCuda,
        bundle: Path,
        graphs: Mapping[str, PartitionGraph],
        rows: tuple[int, ...],
        kv_buckets: tuple[int, ...],
        tokens: int = 8,
    ) -> None:
        self._cuda, self._graphs = cuda, graphs
        self._rows, self._kv_buckets, self._tokens = rows, kv_buckets, tokens
        self._sessions = {
            name: ort.InferenceSession(str(bundle / graph.file), providers=["CPUExecutionProvider"])
            for name, graph in graphs.items()
        }
        self.loaded: set[tuple[str, tuple[tuple[str, int], ...]]] = set()
        self.closed = False

    def load(self, graph: str, sizes: Mapping[str, int]) -> None:
        self.loaded.add((graph, tuple(sorted(sizes.items()))))

    def enqueue(
        self, graph: str, sizes: Mapping[str, int], reads: Sequence[int], writes: Sequence[int], stream: FakeStream
    ) -> None:
        assert (graph, tuple(sorted(sizes.items()))) in self.loaded
        spec, session, sizes = self._graphs[graph], self._sessions[graph], dict(sizes)

        def work() -> None:
            feeds = {
                each.name: _array(address, each.shape, each.dtype, sizes).copy()
                for each, address in zip(spec.inputs, reads, strict=True)
            }
            for each, address, value in zip(spec.outputs, writes, session.run(None, feeds), strict=True):
                _array(address, each.shape, each.dtype, sizes)[...] = value

        self._cuda.submit(stream, graph, work)

    def rows(self) -> tuple[int, ...]:
        return self._rows

    def kv_buckets(self) -> tuple[int, ...]:
        return self._kv_buckets

    def tokens(self) -> int:
        return self._tokens

    def close(self) -> None:
        self.closed = True


def _array(address: int, shape: Sequence[int | str], dtype: str, sizes: Mapping[str, int]) -> Any:
    return array_at(address, [size if isinstance(size, int) else sizes[size] for size in shape], np.dtype(dtype))


def array_at(address: int, shape: Sequence[int], dtype: np.dtype[Any]) -> Any:
    """The array that lies at an address."""
    raw = (ctypes.c_byte * (int(np.prod(shape)) * dtype.itemsize)).from_address(address)
    return np.frombuffer(memoryview(raw), dtype).reshape(shape)

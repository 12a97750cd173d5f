"""Engines of TensorRT that run partitions: found for a call's sizes, loaded once, called with bare addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.partition_runner import Sizes
from adaptc.runtime.backends.tensorrt.context import Context
from adaptc.runtime.backends.tensorrt.engines import EngineFolder, content_of
from adaptc.runtime.backends.tensorrt.library import Trt
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.partitions import PartitionGraph


class TensorRtRunner:
    """Engines of TensorRT. Their activations share one piece of memory: they run one after another."""

    def __init__(self, bundle: Bundle, graphs: Mapping[str, PartitionGraph], flavour: str, cuda: Cuda) -> None:
        """Look for engines that fit this machine; none is loaded yet.

        Args:
            bundle: Whose engines.
            graphs: What will be asked for, by name; equal ones are one engine.
            flavour: "tensorrt", "tensorrt-rtx".
            cuda: The GPU.

        Raises:
            EngineError: the library is not there, or there are no engines for this machine.
        """
        self._bundle, self._graphs, self._cuda = bundle, graphs, cuda
        self._trt = Trt(flavour)
        self._folder = EngineFolder(bundle.path, flavour)
        self._records = self._folder.records()
        self._here = self._trt.version, cuda.device.sm, cuda.device.name
        wanted = {content_of(bundle, graph.file) for graph in graphs.values()}
        self._fitting = [
            record
            for record in self._records
            if record.graph in wanted and record.library == self._here[0] and record.fits(*self._here[1:])
        ]
        if not self._fitting:
            first = next(iter(graphs.values()))
            self._folder.find(self._records, bundle, first, {"batch": 1, "tokens": 1, "kv_bucket": 1}, self._here)
        self._runtime: Any = self._trt.runtime()
        self._found: dict[tuple[str, tuple[tuple[str, int], ...]], Context] = {}
        self._loaded: dict[str, Context] = {}
        self._scratch, self._size = 0, 0

    def load(self, graph: str, sizes: Sizes) -> None:
        """See `PartitionRunner.load`."""
        key = graph, tuple(sorted(sizes.items()))
        if key in self._found:
            return
        spec = self._graphs[graph]
        record = self._folder.find(self._records, self._bundle, spec, sizes, self._here)
        engine = self._loaded.get(record.key)
        if engine is None:
            engine = Context(self._trt, self._runtime, self._folder, record)
            if engine.bytes > self._size:
                # Engines loaded before keep the smaller piece: graphs that were captured with it go on using it.
                self._scratch, self._size = self._cuda.alloc(engine.bytes), engine.bytes
            engine.use(self._scratch, self._size)
            self._loaded[record.key] = engine
        self._found[key] = engine

    def enqueue(self, graph: str, sizes: Sizes, reads: Sequence[int], writes: Sequence[int], stream: Any) -> None:
        """See `PartitionRunner.enqueue`."""
        engine = self._found[graph, tuple(sorted(sizes.items()))]
        spec = self._graphs[graph]
        shapes = {
            each.name: tuple(size if isinstance(size, int) else sizes[size] for size in each.shape)
            for each in spec.inputs
        }
        names = [each.name for each in (*spec.inputs, *spec.outputs)]
        engine.enqueue(shapes, dict(zip(names, (*reads, *writes), strict=True)), stream)

    def rows(self) -> tuple[int, ...]:
        """See `PartitionRunner.rows`."""
        return self._sizes("batch")

    def kv_buckets(self) -> tuple[int, ...]:
        """See `PartitionRunner.kv_buckets`."""
        return self._sizes("kv_bucket")

    def tokens(self) -> int:
        """See `PartitionRunner.tokens`."""
        return max((record.sizes["tokens"][2] for record in self._fitting if "tokens" in record.sizes), default=1)

    def close(self) -> None:
        """See `PartitionRunner.close`."""
        for engine in self._loaded.values():
            engine.close()
        self._loaded.clear()
        self._found.clear()
        self._runtime = None

    def _sizes(self, name: str) -> tuple[int, ...]:
        """The sizes for which there are engines of steps."""
        steps = [r.sizes for r in self._fitting if r.sizes.get("tokens", (1, 1, 1))[2] == 1]
        return tuple(sorted({sizes[name][0] for sizes in steps if name in sizes}))

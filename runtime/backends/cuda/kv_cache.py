"""The KV cache on a GPU: as many positions as the sequences need now, in memory for all that there may be.

Keys lie as [rows, heads, head_dim, bucket] and values as [rows, heads, bucket, head_dim], so that a step over few
positions reads one dense piece. When the sequences outgrow their KV bucket, the rows are moved apart once, inside the
same memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.memory import GraphMemory
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.names import CACHE_KINDS, KEY, VALUE, past, step_cache
from adaptc.runtime.errors import RequestError

HALF = 2
"""Bytes of an element."""

LAYER = np.dtype(
    [(name, np.uint64) for name in ("new_key", "new_value", "past_key", "past_value")]
    + [("heads", np.int32), ("width", np.int32)]
)
"""`Layer` of the kernels."""


class GpuKvCache:
    """Keys and values of every layer.

    Attributes:
        bucket: Positions that a row has now, one of the KV buckets.
        positions: Address of 0, 1, 2, …, int32[max_tokens].
    """

    def __init__(
        self, cuda: Cuda, memory: GraphMemory, spec: DecoderSpec, batch: int, buckets: tuple[int, ...]
    ) -> None:
        """Small at first.

        Args:
            cuda: The GPU.
            memory: Has the cache.
            spec: Its sizes.
            batch: Rows.
            buckets: Numbers of positions that there are engines for.
        """
        self._cuda, self._memory, self._spec, self._batch = cuda, memory, spec, batch
        self._buckets = sorted(buckets)
        self.bucket = self._buckets[0]
        self.positions = cuda.alloc(4 * spec.max_tokens)
        cuda.put(self.positions, np.arange(spec.max_tokens, dtype=np.int32))
        self._scratch = 0

    def fit(self, tokens: int, *, keep: bool, stream: Any) -> None:
        """Make room for so many tokens in every row.

        Args:
            tokens: Most of any row, the next one included where there is a next.
            keep: Whether rows hold something.
            stream: In whose order.

        Raises:
            RequestError: no engine reads so many positions.
        """
        tokens = min(tokens, self._spec.max_tokens)
        bucket = next((bucket for bucket in self._buckets if bucket >= tokens), None)
        if bucket is None:
            raise RequestError(
                f"prompt: {tokens} tokens; the engines serve {self._buckets[-1]}: adaptc build --kv-buckets with more"
            )
        if not keep:
            self.bucket = bucket
        elif bucket > self.bucket:
            self._grow(bucket, stream)

    def row(self, row: int) -> dict[str, int]:
        """Addresses of the cache from this row on, by the names of the graph's inputs."""
        found = {}
        for layer, (heads, width) in enumerate(self._spec.kv):
            for kind in CACHE_KINDS:
                name = past(layer, kind)
                found[name] = self._memory.past[name] + row * heads * width * self.bucket * HALF
        return found

    def layers(self, row: int) -> npt.NDArray[Any]:
        """What `write_kv` needs: for each layer where the step's keys and values lie, and where they go."""
        table = np.zeros(len(self._spec.kv), LAYER)
        addresses = self.row(row)
        for layer, (heads, width) in enumerate(self._spec.kv):
            new = [self._memory.values[step_cache(layer, kind)] for kind in CACHE_KINDS]
            table[layer] = (*new, addresses[past(layer, KEY)], addresses[past(layer, VALUE)], heads, width)
        return table

    def move(self, row: int, to: int, stream: Any) -> None:
        """Copy one row over another."""
        for layer, (heads, width) in enumerate(self._spec.kv):
            size = heads * width * self.bucket * HALF
            for kind in CACHE_KINDS:
                start = self._memory.past[past(layer, kind)]
                self._cuda.copy_rows((start + to * size, size), (start + row * size, size), size, 1, stream)

    def _grow(self, bucket: int, stream: Any) -> None:
        """Move the rows apart: through scratch memory, since old and new places overlap."""
        old, self.bucket = self.bucket, bucket
        if not self._scratch:
            largest = max(heads * width for heads, width in self._spec.kv)
            self._scratch = self._cuda.alloc(self._batch * largest * self._buckets[-1] * HALF)
        for layer, (heads, width) in enumerate(self._spec.kv):
            for kind, unit, lines in ((KEY, 1, heads * width), (VALUE, width, heads)):
                address = self._memory.past[past(layer, kind)]
                small, large = old * unit * HALF, bucket * unit * HALF
                rows = self._batch * lines
                self._cuda.copy_rows((self._scratch, small), (address, small), small, rows, stream)
                self._cuda.clear(address, rows * large, stream)
                self._cuda.copy_rows((address, large), (self._scratch, small), small, rows, stream)

"""The KV cache of a decoder whose steps are kernels of ours: all positions of every slot, upright.

Keys and values lie as float16[slots, kv_heads, max_tokens, head_dim], as ONNX Runtime's attention has them. A step
reads as many positions as its rows have, so there are no KV buckets and nothing moves when a sequence grows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.kv_cache import HALF, LAYER
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.names import CACHE_KINDS, past


class KvRows:
    """Keys and values of every layer.

    Attributes:
        bucket: Positions of a slot.
        positions: 0: nothing reads a table of positions.
        bytes: What was taken.
    """

    def __init__(self, cuda: Cuda, spec: DecoderSpec, slots: int) -> None:
        """Take the memory.

        Raises:
            EngineError: the GPU has too little.
        """
        self._cuda, self.bucket, self.positions = cuda, spec.max_tokens, 0
        sizes = {
            past(layer, kind): heads * width * spec.max_tokens * HALF
            for layer, (heads, width) in enumerate(spec.kv)
            for kind in CACHE_KINDS
        }
        self._sizes = sizes
        self.bytes = slots * sum(sizes.values())
        self._past = {name: cuda.alloc(slots * size) for name, size in sizes.items()}

    def fit(self, tokens: int, *, keep: bool, stream: Any) -> None:
        """There is room for all tokens that a sequence may have."""

    def row(self, row: int) -> dict[str, int]:
        """Addresses of a slot's entries, by the names of the graph's inputs."""
        return {name: self._past[name] + row * size for name, size in self._sizes.items()}

    def layers(self, row: int) -> npt.NDArray[Any]:
        """Nothing is left to write after a step: attention does."""
        return np.zeros(0, LAYER)

    def move(self, row: int, to: int, stream: Any) -> None:
        """Copy one slot over another."""
        for name, size in self._sizes.items():
            start = self._past[name]
            self._cuda.copy_rows((start + to * size, size), (start + row * size, size), size, 1, stream)

"""The KV cache in the host's memory: a slot for each sequence, and copies of token blocks in and out of it."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.host.memory import lazy_zeros
from adaptc.runtime.backends.host.prefix_cache import BLOCK, Entry
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.names import CACHE_KINDS
from adaptc.runtime.errors import RequestError


class KvSlots:
    """Keys and values of all layers.

    Attributes:
        arrays: [batch, kv_heads, max_tokens, head_dim] by (layer, kind).
    """

    def __init__(self, spec: DecoderSpec, batch: int, dtype: str = "float32") -> None:
        """Reserve the memory; pages are taken when they are first written.

        Args:
            spec: Gives the sizes.
            batch: Slots.
            dtype: Of the entries: "float32", "float16", or "int8" for codes.

        Raises:
            RequestError: it does not fit.
        """
        size = 2 * np.dtype(dtype).itemsize * batch * spec.max_tokens * sum(heads * width for heads, width in spec.kv)
        try:
            self.arrays: dict[tuple[int, str], npt.NDArray[Any]] = {
                (layer, kind): lazy_zeros((batch, heads, spec.max_tokens, width), dtype)
                for layer, (heads, width) in enumerate(spec.kv)
                for kind in CACHE_KINDS
            }
        except MemoryError as error:
            raise RequestError(
                f"batch: {batch} sequences of {spec.max_tokens} tokens need {size / 2**30:.1f} GiB of memory"
            ) from error

    def move(self, slot: int, to: int, tokens: int) -> None:
        """Copy the first tokens of a slot to another one."""
        for array in self.arrays.values():
            array[to, :, :tokens] = array[slot, :, :tokens]

    def block(self, slot: int, start: int) -> Entry:
        """Copies of the `BLOCK` tokens of a slot from `start` on."""
        return [array[slot, :, start : start + BLOCK].copy() for array in self.arrays.values()]

    def restore(self, slot: int, start: int, entry: Entry) -> None:
        """Write such copies back, into any slot."""
        for array, part in zip(self.arrays.values(), entry, strict=False):  # a trunk's states may follow
            array[slot, :, start : start + BLOCK] = part

    def digest(self, slot: int, first: int, end: int) -> bytes:
        """A hash of the entries of some tokens of a slot."""
        seen = hashlib.blake2b(digest_size=16)
        for array in self.arrays.values():
            seen.update(array[slot, :, first:end].tobytes())
        return seen.digest()

    def clear(self) -> None:
        """Free the memory."""
        self.arrays.clear()

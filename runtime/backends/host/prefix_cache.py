"""The KV entries of token blocks that were read before, so that prompts which begin alike are read once.

A block is `BLOCK` tokens in a row. Its key is a hash of its tokens and of all before them, so a prompt finds the blocks
of any other prompt, or of an earlier turn of its chat, from its first token to where the two part. Entries are copies:
slots come and go, and a slot of the cache holds one sequence only.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.model.decoder import Ids

BLOCK = 16
"""Tokens of a block."""

Entry = list[npt.NDArray[Any] | None]
"""Copies of what a slot holds of a block: keys and values of every layer, and a trunk's states. None stands for those
of a layer that keeps a window which had left the block behind."""


def block_keys(ids: Ids, prompt: int, salt: bytes = b"", adapter: str = "") -> list[bytes]:
    """The keys of a sequence's whole blocks.

    Args:
        ids: int64 [tokens], a prompt and what was written after it.
        prompt: The number of tokens of the prompt.
        salt: What sets blocks with written tokens apart from a prompt of the same tokens: their entries differ if
            blocks of the model were skipped.
        adapter: What sets all blocks of a sequence apart from those of another adapter, and of none.

    Returns:
        A key of 16 bytes for each block.
    """
    keys: list[bytes] = []
    key = blake2b(adapter.encode(), digest_size=16).digest() if adapter else b""
    for end in range(BLOCK, len(ids) + 1, BLOCK):
        tokens = np.ascontiguousarray(ids[end - BLOCK : end], np.int64).tobytes()
        key = blake2b(key + tokens + (salt if end > prompt else b""), digest_size=16).digest()
        keys.append(key)
    return keys


class PrefixCache:
    """Entries by key, the one unused for longest dropped first.

    Attributes:
        limit: The largest size of all entries in bytes; 0 keeps none.
        size: Their size now.
    """

    def __init__(self, limit: int) -> None:
        """Begin empty.

        Args:
            limit: See the attribute.
        """
        self.limit = limit
        self.size = 0
        self._entries: OrderedDict[tuple[str, bytes], Entry] = OrderedDict()

    def known(self, graph: str, keys: list[bytes], first: int = 0) -> int:
        """How many blocks from `first` on are there without a gap.

        Args:
            graph: Whose entries.
            keys: Those of a sequence.
            first: An index into them.
        """
        return sum(1 for _ in takewhile(lambda key: (graph, key) in self._entries, keys[first:]))

    def get(self, graph: str, key: bytes) -> Entry | None:
        """The entry of a block; None if there is none."""
        return self._entries.get((graph, key))

    def lacks(self, graph: str, key: bytes) -> bool:
        """Whether the entry of a block is not there, or not of all layers."""
        return not _whole(self._entries.get((graph, key), [None]))

    def touch(self, graph: str, keys: list[bytes]) -> None:
        """Note that a sequence uses its blocks; of these the last is dropped first, since it is of use only after all.

        Args:
            graph: Whose entries.
            keys: Those of the sequence, in their order.
        """
        for key in reversed(keys):
            if (graph, key) in self._entries:
                self._entries.move_to_end((graph, key))

    def put(self, graph: str, key: bytes, entry: Entry) -> None:
        """Keep an entry, if it fits at all; one that is there stays unless this one is of all layers."""
        size = _size(entry)
        if size > self.limit or ((graph, key) in self._entries and not _whole(entry)):
            return
        self.size += size - _size(self._entries.pop((graph, key), []))
        self._entries[graph, key] = entry
        while self.size > self.limit:
            _, dropped = self._entries.popitem(last=False)
            self.size -= _size(dropped)

    def clear(self) -> None:
        """Drop all entries."""
        self._entries.clear()
        self.size = 0


def _whole(entry: Entry) -> bool:
    """Whether an entry has the block of all layers."""
    return all(array is not None for array in entry)


def _size(entry: Entry) -> int:
    """Bytes of an entry."""
    return sum(0 if array is None else array.nbytes for array in entry)

"""The interface of an engine that runs the partitions of a decoder, called with bare addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Sizes = Mapping[str, int]
"""How large "batch", "tokens" and "kv_bucket" are."""


class PartitionRunner(Protocol):
    """What runs the graphs of a decoder's partitions."""

    def load(self, graph: str, sizes: Sizes) -> None:
        """Make a graph ready for these sizes.

        Raises:
            EngineError: no engine serves them, or it cannot be loaded.
        """

    def enqueue(self, graph: str, sizes: Sizes, reads: Sequence[int], writes: Sequence[int], stream: Any) -> None:
        """Run a loaded graph in the stream's order.

        Args:
            graph: Its name.
            sizes: Sizes of this call.
            reads: The address of each input.
            writes: The address of each output.
            stream: In whose order it runs; it may be capturing.
        """

    def rows(self) -> tuple[int, ...]:
        """Rows that a step may have."""

    def kv_buckets(self) -> tuple[int, ...]:
        """Positions of the cache that a step may read."""

    def tokens(self) -> int:
        """Most tokens of a prompt at once."""

    def close(self) -> None:
        """Free the engines."""

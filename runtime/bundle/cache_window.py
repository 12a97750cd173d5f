"""Layers that attend over a window keep the newest positions only: how many, and when the oldest are given up."""

from __future__ import annotations

from dataclasses import dataclass

ROLLBACK = 64
"""Tokens that may be taken off a sequence again, as drafted ones are, before what a window holds is gone."""

LEAST_SLACK = 32
"""Positions that a cache holds at least beyond its window and `ROLLBACK`: half of them are given up at once."""

SLACK = 1024
"""Positions that a cache usually holds beyond these: a piece of a prompt is half of them."""


@dataclass(frozen=True, slots=True)
class CacheWindow:
    """Some layers of a decoder whose cache holds fewer positions than a text has.

    A text's oldest positions are given up `shift` at a time, so what is left always begins at a multiple of it: kernels
    then cut what they read into the same blocks as in a cache of all positions, and round alike.

    Attributes:
        layers: Their numbers.
        window: How many latest positions, itself included, a position attends to.
        positions: Positions that their cache holds.
    """

    layers: tuple[int, ...]
    window: int
    positions: int

    @property
    def shift(self) -> int:
        """Of how many positions the number of those that are gone is a multiple; a power of two."""
        return 1 << (max(1, (self.positions - self.window - ROLLBACK) // 2).bit_length() - 1)

    @property
    def piece(self) -> int:
        """The largest number of tokens that a run may add."""
        return self.positions - self.window - ROLLBACK - self.shift + 1

    def gone(self, tokens: int) -> int:
        """How many of the oldest positions a text of so many tokens needs no more."""
        return max(0, tokens - self.window - ROLLBACK) // self.shift * self.shift

    def oldest(self, tokens: int) -> int:
        """The first position that any token behind the first `tokens` attends to."""
        return max(0, tokens - self.window)

"""Layers that attend over a window: their part of the KV cache holds a text's newest positions, moved when full."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.engine import Arrays
from adaptc.runtime.bundle.cache_window import CacheWindow
from adaptc.runtime.bundle.names import window_lengths, window_total


class WindowSlots:
    """The cache of the layers of one window.

    Place i of a slot holds position `base` + i of its text. Keys were turned by their positions in the text, so what is
    moved stays as it is. Positions before `first` are not there: they were given up, or never written, where a text
    began with entries of others; no token attends to their places.

    Attributes:
        window: What the layers keep.
        arrays: [batch, kv_heads, positions, head_dim], of these layers.
        lengths: int32 [batch], what the graph is told of each slot: its last place that is in use.
    """

    def __init__(self, number: int, window: CacheWindow, arrays: list[npt.NDArray[Any]], batch: int) -> None:
        """Begin with empty slots.

        Args:
            number: Index of the window among those of the decoder.
            window: See the attribute.
            arrays: See the attribute.
            batch: Slots.
        """
        self.window, self.arrays = window, arrays
        self.lengths = np.zeros(batch, np.int32)
        self.names = window_lengths(number), window_total(number)
        self._base, self._first = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        self._step_total, self._prompt_total = np.zeros((), np.int32), np.zeros((), np.int32)

    def first(self, slot: int) -> int:
        """The oldest position of a slot's text that is there."""
        return int(self._first[slot])

    def base(self, slot: int) -> int:
        """The position of a slot's first place."""
        return int(self._base[slot])

    def step_feeds(self, count: int) -> Arrays:
        """What a step of the first slots is told; `step` changes the contents."""
        lengths, total = self.names
        return {lengths: self.lengths[:count], total: self._step_total}

    def prompt_feeds(self, slot: int) -> Arrays:
        """What a run of several tokens of a slot is told; `read` changes the contents."""
        lengths, total = self.names
        return {lengths: self.lengths[slot : slot + 1], total: self._prompt_total}

    def step(self, last: npt.NDArray[np.int32]) -> None:
        """Make room for a token in each of the first slots, whose indices are `last`."""
        count = len(last)
        for slot in np.flatnonzero(last - self._base[:count] >= self.window.positions):
            self._give_up(int(slot), int(last[slot]))
        self.lengths[:count] = last - self._base[:count]
        self._step_total[...] = self.lengths[:count].max() + 1

    def read(self, slot: int, start: int, tokens: int) -> None:
        """Make room for tokens of a slot that holds `start` of them."""
        if start == 0:
            self.clear(slot)
        if start + tokens - self._base[slot] > self.window.positions:
            self._give_up(slot, start)
        self.lengths[slot] = start + tokens - 1 - self._base[slot]
        self._prompt_total[...] = self.lengths[slot] + 1

    def check_length(self, slot: int, tokens: int) -> None:
        """Make sure that a slot can go on after its first `tokens` tokens.

        Raises:
            AssertionError: what they attend to is gone; no drafted text is as long.
        """
        first = self._first[slot]
        assert first <= self.window.oldest(tokens), f"{tokens} tokens are left, and the cache begins at {first}"

    def clear(self, slot: int) -> None:
        """Begin a text in a slot."""
        self._base[slot] = self._first[slot] = 0

    def move(self, slot: int, to: int, tokens: int) -> None:
        """Copy the text of a slot, of so many tokens, to another one."""
        self._first[to], self._base[to] = self._first[slot], self._base[slot]
        used = tokens - self._base[slot]
        for array in self.arrays:
            array[to, :, :used] = array[slot, :, :used]

    def part(self, array: npt.NDArray[Any], slot: int, start: int, stop: int) -> npt.NDArray[Any] | None:
        """A view of some positions of a slot's text; None if one of them is not there."""
        base = self._base[slot]
        return array[slot, :, start - base : stop - base] if start >= self._first[slot] else None

    def open_gap(self, slot: int, held: int, stop: int, block: int) -> None:
        """Prepare a slot for entries of others: what tokens from `stop` on attend to, in whole blocks.

        Args:
            slot: The slot.
            held: Tokens that it holds.
            stop: As many tokens it will hold.
            block: Tokens of a block.
        """
        if self.window.gone(stop) > self._base[slot]:
            self._keep_from(slot, self.window.gone(stop), held)
        first, base = self.window.oldest(stop) // block * block, self._base[slot]
        if first > held:  # nothing attends to what lies between, but a number that is none would spoil sums
            for array in self.arrays:
                array[slot, :, max(0, held - base) : first - base] = 0
            self._first[slot] = first

    def _give_up(self, slot: int, tokens: int) -> None:
        """Drop what a text of so many tokens needs no more."""
        self._keep_from(slot, self.window.gone(tokens), tokens)

    def _keep_from(self, slot: int, base: int, tokens: int) -> None:
        """Move positions from `base` on, of so many tokens, to the beginning of a slot."""
        old = int(self._base[slot])
        for array in self.arrays:
            for head in array[slot]:
                # One head at a time: NumPy copies what overlaps, and so needs a window of one head for it.
                kept = head[base - old : max(base, tokens) - old]
                head[: len(kept)] = kept
        self._base[slot], self._first[slot] = base, max(base, self._first[slot])

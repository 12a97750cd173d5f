"""The KV cache in the host's memory: a slot for each sequence, and copies of token blocks in and out of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.engine import Arrays
from adaptc.runtime.backends.host.memory import lazy_zeros
from adaptc.runtime.backends.host.prefix_cache import BLOCK, Entry
from adaptc.runtime.backends.host.window_slots import WindowSlots
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.names import CACHE_KINDS, TOKEN_POSITIONS
from adaptc.runtime.errors import RequestError


class KvSlots:
    """Keys and values of all layers.

    Attributes:
        arrays: [batch, kv_heads, positions, head_dim] by (layer, kind).
        windows: Layers that hold fewer positions than a text has.
    """

    def __init__(self, spec: DecoderSpec, batch: int, dtype: str = "float32", *, turns: bool = False) -> None:
        """Reserve the memory; pages are taken when they are first written.

        Args:
            spec: Gives the sizes.
            batch: Slots.
            dtype: Of the entries: "float32", "float16", or "int8" for codes.
            turns: Whether the graph is told the positions of tokens.

        Raises:
            RequestError: it does not fit.
        """
        size = np.dtype(dtype).itemsize * batch * spec.cache_entries()
        try:
            self.arrays: dict[tuple[int, str], npt.NDArray[Any]] = {
                (layer, kind): lazy_zeros((batch, heads, positions, width), dtype)
                for layer, ((heads, width), positions) in enumerate(zip(spec.kv, spec.positions, strict=True))
                for kind in CACHE_KINDS
            }
        except MemoryError as error:
            raise RequestError(
                f"batch: {batch} sequences of {spec.max_tokens} tokens need {size / 2**30:.1f} GiB of memory"
            ) from error
        self.windows: tuple[WindowSlots, ...] = ()
        self._window_of: dict[tuple[int, str], WindowSlots] = {}
        for number, window in enumerate(spec.windows):
            where = [(layer, kind) for layer in window.layers for kind in CACHE_KINDS]
            slots = WindowSlots(number, window, [self.arrays[each] for each in where], batch)
            self.windows += (slots,)
            self._window_of |= dict.fromkeys(where, slots)
        self._turns = turns
        self._places = np.zeros((batch, 1), np.int64)

    @property
    def piece(self) -> int | None:
        """The largest number of tokens that a run may add to a slot; None if all may be added."""
        return min((window.window.piece for window in self.windows), default=None)

    def step(self, last: npt.NDArray[np.int32]) -> None:
        """Make room for a token in each of the first slots, whose indices are `last`."""
        for window in self.windows:
            window.step(last)
        self._places[: len(last), 0] = last

    def step_feeds(self, count: int) -> Arrays:
        """What a step of the first slots is told of windows; `step` changes the contents."""
        places = {TOKEN_POSITIONS: self._places[:count]} if self._turns else {}
        return {**places, **{name: each for window in self.windows for name, each in window.step_feeds(count).items()}}

    def read(self, slot: int, start: int, tokens: int) -> Arrays:
        """Make room for tokens of a slot that holds `start` of them; what their run is told of windows."""
        feeds: Arrays = {}
        for window in self.windows:
            window.read(slot, start, tokens)
            feeds |= window.prompt_feeds(slot)
        return feeds | ({TOKEN_POSITIONS: np.arange(start, start + tokens)[None]} if self._turns else {})

    def set_length(self, slot: int, tokens: int) -> None:
        """Say that a slot has the first tokens of its text only; 0 begins a text."""
        for window in self.windows:
            if tokens:
                window.check_length(slot, tokens)
            else:
                window.clear(slot)

    def move(self, slot: int, to: int, tokens: int) -> None:
        """Copy the first tokens of a slot to another one."""
        for where, array in self.arrays.items():
            if where not in self._window_of:
                array[to, :, :tokens] = array[slot, :, :tokens]
        for window in self.windows:
            window.move(slot, to, tokens)

    def block(self, slot: int, start: int) -> Entry:
        """Copies of the `BLOCK` tokens of a slot from `start` on; of windows that have lost one of them, nothing."""
        parts = (self._part(where, slot, start, start + BLOCK) for where in self.arrays)
        return [None if part is None else part.copy() for part in parts]

    def restorable(self, first: int, entries: Sequence[Entry]) -> int:
        """How many of some blocks in a row, from that of index `first` on, a slot can go on after.

        It needs of a window what the next token attends to, and of a full layer all.
        """
        for count in range(len(entries), 0, -1):
            stop = (first + count) * BLOCK
            if all(
                entries[index - first][place] is not None
                for place, window in self._windowed
                for index in range(max(first, window.window.oldest(stop) // BLOCK), first + count)
            ):
                return count
        return 0

    def restore(self, slot: int, first: int, entries: Sequence[Entry]) -> None:
        """Write blocks into a slot that holds all tokens before them.

        Args:
            slot: Any slot.
            first: Index of the first block.
            entries: Those that `block` gave, as many as `restorable` says.
        """
        held, stop = first * BLOCK, (first + len(entries)) * BLOCK
        for window in self.windows:
            window.open_gap(slot, held, stop, BLOCK)
        for index, entry in enumerate(entries, first):
            for where, part in zip(self.arrays, entry, strict=False):  # a trunk's states may follow
                place = self._part(where, slot, index * BLOCK, (index + 1) * BLOCK)
                if place is not None and part is not None:
                    place[...] = part

    def digest(self, slot: int, first: int, end: int) -> bytes:
        """A hash of the entries of some tokens of a slot."""
        seen = hashlib.blake2b(digest_size=16)
        for where in self.arrays:
            window = self._window_of.get(where)
            part = self._part(where, slot, first if window is None else max(first, window.first(slot)), end)
            seen.update(b"" if part is None else part.tobytes())
        return seen.digest()

    def clear(self) -> None:
        """Free the memory."""
        self.arrays.clear()
        self.windows = ()
        self._window_of.clear()

    @property
    def _windowed(self) -> list[tuple[int, WindowSlots]]:
        """Places of an entry that are of windows."""
        places = enumerate(self.arrays)
        return [(place, self._window_of[where]) for place, where in places if where in self._window_of]

    def _part(self, where: tuple[int, str], slot: int, start: int, stop: int) -> npt.NDArray[Any] | None:
        """A view of some positions of a slot's text; None if a window has lost one of them."""
        array, window = self.arrays[where], self._window_of.get(where)
        return array[slot, :, start:stop] if window is None else window.part(array, slot, start, stop)

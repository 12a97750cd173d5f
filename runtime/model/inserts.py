"""Inputs of a decoder besides its tokens: features in the place of some, positions that follow images, an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.bundle.manifest import TensorSpec
from adaptc.runtime.bundle.names import ADAPTER, IMAGE_FEATURES, IMAGE_PLACES, POSITION_IDS

Ids = npt.NDArray[np.int64]
Feeds = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Inserts:
    """Features that stand in the place of some tokens of a prompt.

    Attributes:
        places: int64 [places], indices of these tokens, rising.
        values: float32 [places, width].
        positions: int64 [3, tokens]: time, row and column; None where a token's position is its index.
        whole: Whether the places of an image, which follow each other, must be read in one step.
    """

    places: Ids
    values: npt.NDArray[np.float32]
    positions: Ids | None = None
    whole: bool = False

    @property
    def shift(self) -> int:
        """The difference between position and index of every token that follows the prompt."""
        return 0 if self.positions is None else int(self.positions.max()) + 1 - self.positions.shape[1]


def piece_end(inserts: Inserts | None, start: int, stop: int, tokens: int) -> int:
    """Where a piece of a prompt ends so that it cuts through no image that must be read in one step.

    Args:
        inserts: Of the prompt.
        start: The first token of the piece, in no such image or at its beginning.
        stop: Behind its last one if there were no images.
        tokens: Of the prompt.

    Returns:
        `stop`, or the beginning of the image that it would cut, or the end of one that the piece begins with.
    """
    if inserts is None or not inserts.whole or stop >= tokens:
        return stop
    places = inserts.places
    at = int(np.searchsorted(places, stop))
    if not 0 < at < len(places) or places[at] != stop or places[at - 1] != stop - 1:
        return stop
    run = places - np.arange(len(places))  # the same for all of a run of places
    first, last = (int(places[np.searchsorted(run, run[at], side) - (side == "right")]) for side in ("left", "right"))
    if first > start + 1:
        return first
    return last + 1 if tokens - last > 2 else tokens


class ExtraInputs:
    """Fills the inputs that a decoder has besides tokens and cache; for a graph without any it gives none."""

    def __init__(self, inputs: Sequence[TensorSpec], batch: int) -> None:
        """Read from a graph which of these inputs it has.

        Args:
            inputs: The inputs of the graph.
            batch: Slots of the cache.
        """
        width = next((tensor.shape[-1] for tensor in inputs if tensor.name == IMAGE_FEATURES), None)
        self._nothing: Feeds = {}
        if isinstance(width, int):
            self._nothing = {IMAGE_FEATURES: np.zeros((0, width), np.float32), IMAGE_PLACES: np.zeros(0, np.int64)}
        self._spatial = any(tensor.name == POSITION_IDS and len(tensor.shape) == 3 for tensor in inputs)
        self._shifts = np.zeros(batch, np.int64)
        self._positions: dict[int, Ids] = {}
        self._adapts = any(tensor.name == ADAPTER for tensor in inputs)
        self._adapters = np.zeros(batch, np.int64)

    def read(self, slot: int, start: int, tokens: int, inserts: Inserts | None) -> Feeds:
        """Feeds for `tokens` tokens of a prompt from index `start` on."""
        feeds = dict(self._nothing)
        if inserts is not None and feeds:
            first, last = np.searchsorted(inserts.places, (start, start + tokens))
            feeds = {IMAGE_FEATURES: inserts.values[first:last], IMAGE_PLACES: inserts.places[first:last] - start}
        if self._spatial:
            positions = None if inserts is None else inserts.positions
            self._shifts[slot] = 0 if inserts is None else inserts.shift
            plain = np.broadcast_to(np.arange(start, start + tokens), (3, tokens))
            part = plain if positions is None else positions[:, start : start + tokens]
            feeds[POSITION_IDS] = np.ascontiguousarray(part[:, None])
        if self._adapts:
            feeds[ADAPTER] = self._adapters[slot : slot + 1]
        return feeds

    def step(self, count: int) -> Feeds:
        """Feeds for one token of each of the first slots; `advance` changes their contents."""
        feeds = dict(self._nothing)
        if self._adapts:
            feeds[ADAPTER] = self._adapters[:count]
        if self._spatial:
            self._positions[count] = np.zeros((3, count, 1), np.int64)
            feeds[POSITION_IDS] = self._positions[count]
        return feeds

    def advance(self, last: npt.NDArray[np.int32]) -> None:
        """Set the positions of the newest tokens in the first slots, whose indices are `last`."""
        if self._spatial and len(last) in self._positions:
            self._positions[len(last)][:, :, 0] = last + self._shifts[: len(last)]

    def clear(self, slot: int, adapter: int = 0) -> None:
        """Forget the sequence of a slot; the next one has this adapter, counted from 1, or none."""
        self._shifts[slot] = 0
        self._adapters[slot] = adapter

    def move(self, slot: int, to: int) -> None:
        """Move a sequence to another slot."""
        self._shifts[to] = self._shifts[slot]
        self._adapters[to] = self._adapters[slot]

"""What a decoder is fed beside its tokens: images' features in the place of some, and positions that follow images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.bundle.manifest import TensorSpec
from adaptc.runtime.bundle.names import IMAGE_FEATURES, IMAGE_PLACES, POSITION_IDS

Ids = npt.NDArray[np.int64]
Feeds = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Inserts:
    """Values for some tokens of a prompt.

    Attributes:
        places: int64 [places], rising.
        values: float32 [places, width].
        positions: int64 [3, tokens]; None where a token's position is how many stand before it.
    """

    places: Ids
    values: npt.NDArray[np.float32]
    positions: Ids | None = None

    @property
    def shift(self) -> int:
        """What is added to how many tokens stand before one that follows the prompt, to get its position."""
        return 0 if self.positions is None else int(self.positions.max()) + 1 - self.positions.shape[1]


class ExtraInputs:
    """Fills the inputs that a decoder has besides tokens and cache; for a graph without any it gives none."""

    def __init__(self, inputs: Sequence[TensorSpec], batch: int) -> None:
        """Look at what the graph takes.

        Args:
            inputs: The graph's.
            batch: Rows of the cache.
        """
        width = next((tensor.shape[-1] for tensor in inputs if tensor.name == IMAGE_FEATURES), None)
        self._nothing: Feeds = {}
        if isinstance(width, int):
            self._nothing = {IMAGE_FEATURES: np.zeros((0, width), np.float32), IMAGE_PLACES: np.zeros(0, np.int64)}
        self._spatial = any(tensor.name == POSITION_IDS and len(tensor.shape) == 3 for tensor in inputs)
        self._shifts = np.zeros(batch, np.int64)
        self._positions: dict[int, Ids] = {}

    def read(self, row: int, start: int, tokens: int, inserts: Inserts | None) -> Feeds:
        """Feeds for some tokens of a prompt, of which `start` stand before them."""
        feeds = dict(self._nothing)
        if inserts is not None and feeds:
            first, last = np.searchsorted(inserts.places, (start, start + tokens))
            feeds = {IMAGE_FEATURES: inserts.values[first:last], IMAGE_PLACES: inserts.places[first:last] - start}
        if self._spatial:
            given = None if inserts is None else inserts.positions
            self._shifts[row] = 0 if inserts is None else inserts.shift
            plain = np.broadcast_to(np.arange(start, start + tokens), (3, tokens))
            part = plain if given is None else given[:, start : start + tokens]
            feeds[POSITION_IDS] = np.ascontiguousarray(part[:, None])
        return feeds

    def step(self, rows: int) -> Feeds:
        """Feeds for a token of each of the first rows; `advance` changes what they hold."""
        if not self._spatial:
            return dict(self._nothing)
        self._positions[rows] = np.zeros((3, rows, 1), np.int64)
        return {**self._nothing, POSITION_IDS: self._positions[rows]}

    def advance(self, last: npt.NDArray[np.int32]) -> None:
        """Set the positions of the first rows' newest tokens, of which `last` stand before them."""
        if self._spatial and len(last) in self._positions:
            self._positions[len(last)][:, :, 0] = last + self._shifts[: len(last)]

    def move(self, row: int, to: int) -> None:
        """Put one row in the place of another."""
        self._shifts[to] = self._shifts[row]

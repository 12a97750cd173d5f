"""What stands in a prompt in the place of some of its tokens: images' features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adaptc.runtime.manifest import TensorSpec

PLACES = "image_places"
"""A decoder's input: int64 [places], which of a step's tokens are images'."""

FEATURES = "image_features"
"""A decoder's input: float32 [places, width], what stands there."""


@dataclass(frozen=True, slots=True, eq=False)
class Inserts:
    """Values for some tokens of a prompt.

    Attributes:
        places: int64 [places], rising.
        values: float32 [places, width].
    """

    places: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]

    def part(self, start: int, stop: int) -> Inserts:
        """Those of the tokens from `start` to before `stop`, counted from `start`."""
        first, last = np.searchsorted(self.places, (start, stop))
        return Inserts(self.places[first:last] - start, self.values[first:last])

    def feeds(self) -> dict[str, npt.NDArray[np.int64] | npt.NDArray[np.float32]]:
        """As a decoder's inputs."""
        return {FEATURES: self.values, PLACES: self.places}


def nothing(inputs: Sequence[TensorSpec]) -> Inserts | None:
    """What a decoder with these inputs is given where there is no image; None if it takes none."""
    width = next((tensor.shape[-1] for tensor in inputs if tensor.name == FEATURES), None)
    if not isinstance(width, int):
        return None
    return Inserts(np.zeros(0, np.int64), np.zeros((0, width), np.float32))

"""Arrays that are read in parts along their first axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Rows(Protocol):
    """An array that is read in parts along its first axis; a NumPy array is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    def __getitem__(self, rows: slice, /) -> Array:
        """These rows."""


class FirstRows:
    """The first rows of an array."""

    def __init__(self, whole: Rows, count: int) -> None:
        """Leave out what comes after `count` rows."""
        self._whole, self.shape = whole, (min(count, whole.shape[0]), *whole.shape[1:])

    def __getitem__(self, rows: slice, /) -> Array:
        first, last, _ = rows.indices(self.shape[0])
        return self._whole[first:last]


class Stacked:
    """The rows of several arrays, one below the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        """Stack them; they agree in all sizes but the first."""
        self._parts = parts
        self.shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])

    def __getitem__(self, rows: slice, /) -> Array:
        first, last, _ = rows.indices(self.shape[0])
        found, before = [], 0
        for part in self._parts:
            low, high = max(first - before, 0), min(last - before, part.shape[0])
            if low < high:
                found.append(part[low:high])
            before += part.shape[0]
        if not found:
            return self._parts[0][0:0]
        return found[0] if len(found) == 1 else np.concatenate(found)

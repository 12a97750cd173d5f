"""A matrix on the grid that a quantized source has: codes, and a scale for each group of columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class SourceGrid:
    """A matrix [rows, columns] as a quantized source holds it: weight = (code - zero) · scale + offset.

    Scale, zero and offset are those of the group that a column belongs to: `group` neighbouring columns, the last of
    which may be fewer.

    Attributes:
        codes: uint8 [rows, columns], 0 .. levels - 1.
        levels: How many codes there are: 2 to 256.
        group: Columns in a group.
        scales: float32 [rows, groups].
        zeros: int16 [rows, groups], or [1, 1] where all are one.
        offsets: float32 [rows, groups]; None where all are 0.
        order: int64 [columns]: which of the matrix's columns each stored one is; None where they lie in order.
    """

    codes: npt.NDArray[np.uint8]
    levels: int
    group: int
    scales: Floats
    zeros: npt.NDArray[np.int16]
    offsets: Floats | None = None
    order: npt.NDArray[np.int64] | None = None

    def dense(self) -> Floats:
        """The matrix that the codes stand for: float32 [rows, columns]."""
        rows, columns = self.codes.shape
        padded = np.pad(self.codes, ((0, 0), (0, -columns % self.group)))
        values = padded.reshape(rows, -1, self.group).astype(np.float32)
        values -= self.zeros[..., None]
        values *= self.scales[..., None]
        if self.offsets is not None:
            values += self.offsets[..., None]
        stored: Floats = values.reshape(rows, -1)[:, :columns]
        if self.order is None:
            return np.ascontiguousarray(stored)
        matrix = np.empty_like(stored)
        matrix[:, self.order] = stored
        return matrix

    def rows(self, places: npt.NDArray[np.int64]) -> SourceGrid:
        """The matrix of these rows, in this order."""
        zeros = self.zeros if len(self.zeros) == 1 else self.zeros[places]
        offsets = None if self.offsets is None else self.offsets[places]
        return replace(self, codes=self.codes[places], scales=self.scales[places], zeros=zeros, offsets=offsets)


@dataclass(frozen=True, slots=True)
class SourceMatrix:
    """A matrix that a source holds, not read yet.

    Attributes:
        rows: Its rows.
        read: Reads its codes; None where the source has it as floats, or in codes that lie on no grid.
    """

    rows: int
    read: Callable[[], SourceGrid | None]

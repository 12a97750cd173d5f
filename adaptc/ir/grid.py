"""Grids of 4 or 8 bits for a matrix: a scale and a zero point for each block, and which ones are worth trying."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

FOUR = (0.84, 0.87, 0.9, 0.93, 0.96, 1.0, 1.04, 1.08)
"""4-bit scales that are tried, as parts of the scale that just covers a block; 1 finds weights that lie on a grid."""

EIGHT = (1.0, 128 / 127, *(17 / k for k in range(16, 9, -1)))
"""8-bit scales: of files that hold 127 for the largest weight, and of grids that a 4-bit grid is part of."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Scales and zero points of a matrix, one of each for a block.

    Attributes:
        scales: float32 [rows, blocks], never 0.
        zeros: float32 [rows, blocks], whole numbers 0 .. 2^bits - 1.
        bits: Bits of a code.
        block_size: Columns in a block.
    """

    scales: Floats
    zeros: Floats
    bits: int
    block_size: int

    def encode(self, matrix: Floats) -> Floats:
        """The nearest codes: float32 [rows, columns] of whole numbers."""
        blocks = matrix.reshape(*self.scales.shape, self.block_size)
        codes = blocks / self.scales[..., None] + self.zeros[..., None]
        return np.clip(np.rint(codes, out=codes), 0, 2**self.bits - 1, out=codes).reshape(matrix.shape)


def search_grid(matrix: Floats, bits: int, block_size: int, *, symmetric: bool) -> Grid:
    """The grid of least squared error for each block.

    Args:
        matrix: float32 [rows, columns]; columns is a multiple of block_size.
        bits: 4 or 8.
        block_size: Columns in a block.
        symmetric: Keep every zero point at 2^(bits - 1).
    """
    rows, columns = matrix.shape
    count = columns // block_size
    grid = np.empty((2, rows, count), np.float32)
    step = rows_at_a_time(columns)
    for first in range(0, rows, step):
        blocks = np.ascontiguousarray(matrix[first : first + step].reshape(-1, block_size).T)
        scales, zeros = candidates(blocks.min(0), blocks.max(0), bits, symmetric=symmetric)
        best = rounding_losses(blocks, scales, zeros, bits).argmin(0)[None]
        for into, tried in zip(grid, (scales, zeros), strict=True):
            into[first : first + step] = np.take_along_axis(tried, best, 0).reshape(-1, count)
    return Grid(grid[0], grid[1], bits, block_size)


def rows_at_a_time(columns: int) -> int:
    """How many rows of a matrix are worked on together: so many stay in a processor's cache."""
    return max(1, (1 << 18) // columns)


def rounding_losses(block: Floats, scales: Floats, zeros: Floats, bits: int) -> Floats:
    """Squared error [grids, rows] of rounding blocks [size, rows] plainly on each grid."""
    losses = np.empty_like(scales)
    error = np.empty_like(block)
    for scale, low, loss in zip(scales, -zeros, losses, strict=True):
        np.rint(np.multiply(block, 1 / scale, out=error), out=error)
        np.minimum(np.maximum(error, low, out=error), low + (2**bits - 1), out=error)
        error *= scale
        error -= block
        np.einsum("ij,ij->j", error, error, out=loss)
    return losses


def candidates(least: Any, largest: Any, bits: int, *, symmetric: bool, xp: Any = np) -> tuple[Any, Any]:
    """Grids worth trying for blocks.

    Args:
        least: float32 [blocks], the smallest weight of each.
        largest: float32 [blocks], the largest one.
        bits: 4 or 8.
        symmetric: Keep every zero point at 2^(bits - 1).
        xp: The library that these are arrays of: numpy, or torch on any device.

    Returns:
        Scales and zero points, each float32 [candidates, blocks].
    """
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    low, high = xp.clip(least, None, 0), xp.clip(largest, 0, None)
    where = {} if xp is np else {"device": low.device}
    parts = xp.asarray(FOUR if bits == 4 else EIGHT, dtype=low.dtype, **where)[:, None]
    # Of a range about a middle only the lower end, -2^(bits - 1), is a code, so the far end goes there.
    far = xp.where(high > -low, high, low)[None] / -middle
    if symmetric:
        scales = xp.concatenate([parts * far, parts * -far])
        zeros = xp.full_like(scales, middle)
    else:
        scales = parts * (high - low) / top
        centre = xp.floor((top - (high + low) / xp.clip(scales, 1e-30, None)) / 2)
        plain = parts[:2] * far if bits == 8 else far  # finds weights that were symmetric before
        zeros = xp.clip(xp.concatenate([centre, centre + 1, xp.full_like(plain, middle)]), 0, top)
        scales = xp.concatenate([scales, scales, plain])
    return xp.where(xp.abs(scales) < 1e-20, xp.ones_like(scales), scales), zeros

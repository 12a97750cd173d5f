"""Grids of 4 or 8 bits for a matrix: a scale and a zero point for each block, and which ones are worth trying."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float32]

FOUR = (0.84, 0.87, 0.9, 0.93, 0.96, 1.0, 1.04, 1.08)
"""4-bit scales that are tried, as parts of the scale that just covers a block; 1 finds weights that lie on a grid."""

EIGHT = (1.0, 128 / 127, *(17 / k for k in range(16, 9, -1)))
"""8-bit scales: of files that hold 127 for the largest weight, and of grids that a 4-bit grid is part of."""


AT_ONCE = 1 << 16
"""Numbers that an operator works on at once while grids are tried."""


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
        blocks = torch.from_numpy(np.ascontiguousarray(matrix[first : first + step].reshape(-1, block_size).T))
        scales, zeros = candidates(blocks, bits, symmetric=symmetric)
        best = rounding_losses(blocks, scales, zeros, bits).argmin(0)[None]
        for into, tried in zip(grid, (scales, zeros), strict=True):
            into[first : first + step] = tried.gather(0, best).reshape(-1, count).numpy()
    return Grid(grid[0], grid[1], bits, block_size)


def rows_at_a_time(columns: int) -> int:
    """How many rows of a matrix are worked on together: so many stay in a processor's cache."""
    return max(1, (1 << 18) // columns)


def rounding_losses(block: Tensor, scales: Tensor, zeros: Tensor, bits: int, weight: Tensor | None = None) -> Tensor:
    """Squared error [grids, rows] of rounding blocks [size, rows] plainly on each grid, columns weighted [size, 1]."""
    losses = []
    # Several grids at once where blocks are few, as many as stay in the cache: an operator costs its call.
    at_once = max(1, AT_ONCE // block.numel())
    for scale, low in zip(scales[:, None].split(at_once), (-zeros)[:, None].split(at_once), strict=True):
        error = (block * (1 / scale)).round_()
        torch.clamp(error, low, low + (2**bits - 1), out=error)
        error.mul_(scale).sub_(block)
        if weight is not None:
            error.mul_(weight)
        losses.append(error.square_().sum(1))
    return torch.cat(losses)


def candidates(block: Tensor, bits: int, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Grids worth trying for blocks [size, rows]: scales and zero points, each [candidates, rows]."""
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    low, high = block.amin(0).clamp(max=0), block.amax(0).clamp(min=0)
    parts = torch.tensor(FOUR if bits == 4 else EIGHT, device=block.device)[:, None]
    # Of a range about a middle only the lower end, -2^(bits - 1), is a code, so the far end goes there.
    far = torch.where(high > -low, high, low)[None] / -middle
    if symmetric:
        scales = torch.cat([parts * far, parts * -far])
        zeros = torch.full_like(scales, middle)
    else:
        scales = parts * (high - low) / top
        centre = torch.floor((top - (high + low) / scales.clamp(min=1e-30)) / 2)
        plain = parts[:2] * far if bits == 8 else far  # finds weights that were symmetric before
        zeros = torch.cat([centre, centre + 1, torch.full_like(plain, middle)]).clamp(0, top)
        scales = torch.cat([scales, scales, plain])
    return torch.where(scales.abs() < 1e-20, 1.0, scales), zeros

"""hqq: codes chosen by the weights alone, so that few errors are large rather than all small."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from adaptc.ir.grid import Grid, rows_at_a_time, search_grid

Floats = npt.NDArray[np.float32]

NORM = 0.7
"""Errors count by this power: below 1, a few large ones are cheaper than many that are middling."""

TURNS = 4
"""How often codes and grid are made to fit each other; a fifth turn changes nothing."""

WEIGHT, GROWTH = 10.0, 1.01
"""What it costs at first that large errors are set aside, and how that grows each turn; as in the paper's code."""


def hqq_grid(matrix: Floats, bits: int, block_size: int, *, symmetric: bool = False) -> Grid:
    """The grid of each block by half-quadratic quantization (Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog/).

    In turns, large errors are set aside (a shrinkage of the errors), and scale and zero point are fitted to the rest.
    Two things differ from the paper: the kernels' zero points are whole, so they are rounded in every turn; and the
    scale is fitted too, beginning from the grid of least squared error. A block keeps the best of its turns.

    Args:
        matrix: float32 [rows, columns]; columns is a multiple of block_size.
        bits: 4 or 8.
        block_size: Columns in a block.
        symmetric: Keep every zero point at 2^(bits - 1).
    """
    first = search_grid(matrix, bits, block_size, symmetric=symmetric)
    scales, zeros = first.scales.copy(), first.zeros.copy()
    step = rows_at_a_time(matrix.shape[1])
    for row in range(0, len(matrix), step):
        here = slice(row, row + step)
        blocks = np.ascontiguousarray(matrix[here].reshape(-1, block_size).T)
        scale, zero = (each[here].reshape(-1) for each in (scales, zeros))
        fitted = _fitted(blocks, scale, zero, 2**bits - 1, symmetric=symmetric)
        scales[here], zeros[here] = (each.reshape(scales[here].shape) for each in fitted)
    return Grid(scales, zeros, bits, block_size)


def _fitted(blocks: Floats, scale: Floats, zero: Floats, top: int, *, symmetric: bool) -> tuple[Floats, Floats]:
    """The best grids found for blocks [size, count]; scale and zero point, each [count]."""
    unit = np.maximum(np.abs(blocks).max(0), 1e-20)  # the shrinkage is not blind to scale: weights are brought to 1
    blocks, scale = blocks / unit, scale / unit
    best = scale, zero
    least = np.full_like(scale, np.inf)
    for turn in range(TURNS):
        codes = np.clip(np.rint(blocks / scale + zero), 0, top)
        error = blocks - (codes - zero) * scale
        size = np.abs(error)
        loss = np.power(size, NORM).sum(0)
        better = loss < least
        best = np.where(better, scale, best[0]), np.where(better, zero, best[1])
        least = np.where(better, loss, least)
        shrunk = size - np.power(np.maximum(size, 1e-8), NORM - 1) / np.float32(WEIGHT * GROWTH**turn)
        goal = blocks - np.sign(error) * np.maximum(shrunk, 0)
        if not symmetric:
            zero = np.clip(np.rint((codes - goal / scale).mean(0)), 0, top)
        scale = _refit(goal, codes - zero, scale)
    return best[0] * unit, best[1]


def _refit(goal: Floats, steps: Floats, scale: Floats) -> Floats:
    """The scale by which codes less their zero points [size, count] come nearest to a goal."""
    square = np.square(steps).sum(0)
    fitted = (steps * goal).sum(0) / np.maximum(square, 1)
    found: Floats = np.where((square > 0) & (np.abs(fitted) > 1e-12), fitted, scale)
    return found

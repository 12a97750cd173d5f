"""hqq: codes chosen by the weights alone, so that few errors are large rather than all small."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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
        blocks = torch.from_numpy(np.ascontiguousarray(matrix[here].reshape(-1, block_size).T))
        scale, zero = (torch.from_numpy(each[here].reshape(-1)) for each in (scales, zeros))
        fitted = _fitted(blocks, scale, zero, 2**bits - 1, symmetric=symmetric)
        scales[here], zeros[here] = (each.numpy().reshape(scales[here].shape) for each in fitted)
    return Grid(scales, zeros, bits, block_size)


def _fitted(blocks: Tensor, scale: Tensor, zero: Tensor, top: int, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """The best grids found for blocks [size, count]; scale and zero point, each [count]."""
    unit = blocks.abs().amax(0).clamp(min=1e-20)  # the shrinkage is not blind to scale: weights are brought to 1
    blocks, scale = blocks / unit, scale / unit
    best = scale, zero
    least = torch.full_like(scale, torch.inf)
    for turn in range(TURNS):
        codes = (blocks / scale + zero).round_().clamp_(0, top)
        error = blocks - (codes - zero) * scale
        size = error.abs()
        loss = size.pow(NORM).sum(0)
        better = loss < least
        best = torch.where(better, scale, best[0]), torch.where(better, zero, best[1])
        least = torch.where(better, loss, least)
        aside = (size - size.clamp(min=1e-8).pow(NORM - 1) / (WEIGHT * GROWTH**turn)).clamp_(min=0) * error.sign()
        goal = blocks - aside
        if not symmetric:
            zero = (codes - goal / scale).mean(0).round_().clamp_(0, top)
        scale = _refit(goal, codes - zero, scale)
    return best[0] * unit, best[1]


def _refit(goal: Tensor, steps: Tensor, scale: Tensor) -> Tensor:
    """The scale by which codes less their zero points [size, count] come nearest to a goal."""
    square = steps.square().sum(0)
    fitted = (steps * goal).sum(0) / square.clamp(min=1)
    return torch.where((square > 0) & (fitted.abs() > 1e-12), fitted, scale)

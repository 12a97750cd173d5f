"""Which codes a matrix gets: a grid for each block, and rounding that keeps outputs rather than weights.

The rounding is GPTQ (Frantar et al. 2022, arXiv:2210.17323): columns are rounded one after another, and the error of
each is made good by the columns still to come, as the inputs' second moments say. Three choices beyond the paper, each
measured (docs/quantization.md): blocks are taken in order of falling importance, not from left to right; so are
columns within a block; and a block's grid is the one under which GPTQ itself, run over the block, loses least.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from adaptc.errors import PassError

Floats = npt.NDArray[np.float32]
Order = npt.NDArray[np.int64]

FOUR = (0.84, 0.87, 0.9, 0.93, 0.96, 1.0, 1.04, 1.08)
"""4-bit scales that are tried, as parts of the scale that just covers a block; 1 finds weights that lie on a grid."""

EIGHT = (1.0, 128 / 127, *(17 / k for k in range(16, 9, -1)))
"""8-bit scales: of files that hold 127 for the largest weight, and of grids that a 4-bit grid is part of."""

FINALISTS = 2
"""Candidate grids of a block that GPTQ itself is run on."""

STRIP = 8
"""Columns rounded one by one before their errors reach the rest of the block by a matrix product."""

DAMPING = 0.01
"""Added to the Hessian's diagonal, as a part of its mean: calibration inputs do not say everything."""


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


@dataclass(frozen=True, slots=True)
class Curvature:
    """What rounding needs of a Hessian; made once for all matrices that share inputs.

    Attributes:
        order: int64 [columns], in which columns are rounded; blocks stay whole.
        upper: float32 [columns, columns], upper triangular, upperᵀ · upper = inverse of the Hessian in that order.
        block_size: Columns in a block.
    """

    order: Order
    upper: Floats
    block_size: int


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
    step = max(1, (1 << 18) // columns)  # rows at a time: what is worked on stays in the cache
    for first in range(0, rows, step):
        blocks = np.ascontiguousarray(matrix[first : first + step].reshape(-1, block_size).T)
        scales, zeros = _candidates(blocks, bits, symmetric=symmetric)
        best = _losses(blocks, scales, zeros, bits).argmin(0)[None]
        for into, tried in zip(grid, (scales, zeros), strict=True):
            into[first : first + step] = np.take_along_axis(tried, best, 0).reshape(-1, count)
    return Grid(grid[0], grid[1], bits, block_size)


def curvature(hessian: Floats, block_size: int) -> Curvature:
    """Factor a Hessian.

    Args:
        hessian: float32 [columns, columns], mean of x xᵀ; columns is a multiple of block_size.
        block_size: Columns in a block.

    Raises:
        PassError: the Hessian is not finite or not positive.
    """
    weight = hessian.diagonal().reshape(-1, block_size)
    inner = np.argsort(-weight, axis=1, kind="stable")
    outer = np.argsort(-weight.sum(1), kind="stable")
    order = (inner + np.arange(len(weight))[:, None] * block_size)[outer].reshape(-1)
    damped = torch.from_numpy(hessian[np.ix_(order, order)])
    mean = float(weight.mean())
    damped.diagonal().add_(DAMPING * mean if mean > 0 else 1.0)
    # The Cholesky factor of the inverse, without the inverse: factor the matrix read backwards, invert the factor.
    lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    if int(failed) or not np.isfinite(mean):
        raise PassError("the calibration inputs' Hessian is not positive: they may hold NaN or infinity")
    upper = torch.linalg.solve_triangular(lower, torch.eye(len(order)), upper=False).flip(0, 1)
    return Curvature(order, np.ascontiguousarray(upper.numpy()), block_size)


def round_codes(matrix: Floats, curve: Curvature, bits: int, *, symmetric: bool) -> tuple[Floats, Grid]:
    """Round a matrix so that its outputs change least.

    Args:
        matrix: float32 [rows, columns].
        curve: Curvature from the inputs that the matrix meets.
        bits: 4 or 8.
        symmetric: Keep every zero point at 2^(bits - 1).

    Returns:
        Codes, float32 [rows, columns] of whole numbers, and their grid.
    """
    size = curve.block_size
    rows, columns = matrix.shape
    rest = np.ascontiguousarray(matrix.T[curve.order])  # [columns, rows], rounded from the top
    codes = np.empty_like(rest)
    grid = np.empty((2, columns // size, rows), np.float32)
    for block in range(columns // size):
        here = slice(block * size, (block + 1) * size)
        later = slice((block + 1) * size, None)
        upper = curve.upper[here, here]
        scale, zero, errors = _best(rest[here], upper, bits, symmetric=symmetric)
        grid[:, block] = scale, zero
        # What the columns had become when their turn came: earlier errors of this block moved them.
        _subtract(rest[here], np.triu(upper, 1), errors)
        codes[here] = np.clip(np.rint(rest[here] / scale) + zero, 0, 2**bits - 1)
        _subtract(rest[later], curve.upper[here, later], errors)
    place = np.argsort(curve.order)
    blocks = np.argsort(curve.order[::size] // size)
    scales, zeros = (np.ascontiguousarray(each[blocks].T) for each in grid)
    return np.ascontiguousarray(codes[place].T), Grid(scales, zeros, bits, size)


def _best(block: Floats, upper: Floats, bits: int, *, symmetric: bool) -> tuple[Floats, Floats, Floats]:
    """Choose the grids of a block [size, rows] whose first column GPTQ has reached.

    The candidates whose plain rounding loses least (each column's error counts as it does in GPTQ's loss) are tried by
    GPTQ itself.

    Returns:
        Scale and zero point of the best, each [rows], and its errors [size, rows] as GPTQ passes them on.
    """
    scales, zeros = _candidates(block, bits, symmetric=symmetric)
    weight = np.reciprocal(upper.diagonal()[:, None])
    losses = _losses(block, scales, zeros, bits, weight)
    few = np.argpartition(losses, min(FINALISTS, len(losses) - 1), axis=0)[:FINALISTS]
    scales, zeros = np.take_along_axis(scales, few, 0), np.take_along_axis(zeros, few, 0)
    errors, loss = _try(block, upper, scales, zeros, bits)
    best = loss.argmin(0)[None]
    chosen = np.take_along_axis(errors, best[None], 1)[:, 0]
    return np.take_along_axis(scales, best, 0)[0], np.take_along_axis(zeros, best, 0)[0], chosen


def _try(block: Floats, upper: Floats, scales: Floats, zeros: Floats, bits: int) -> tuple[Floats, Floats]:
    """GPTQ over a block [size, rows] on several grids [grids, rows]: errors [size, grids, rows], loss [grids, rows]."""
    size, shape = len(block), scales.shape
    low, high = (-zeros).ravel(), (2**bits - 1 - zeros).ravel()
    step, inverse = scales.ravel(), 1 / scales.ravel()
    values = np.repeat(block[:, None], len(scales), 1).reshape(size, -1)
    errors = np.empty_like(values)
    loss, code = np.zeros_like(step), np.empty_like(step)
    for first in range(0, size, STRIP):
        last = first + STRIP
        for j in range(first, last):
            value, error = values[j], errors[j]
            if j > first:
                value -= np.einsum("i,ij->j", upper[first:j, j], errors[first:j], out=code)
            np.rint(np.multiply(value, inverse, out=code), out=code)
            np.minimum(np.maximum(code, low, out=code), high, out=code)
            np.subtract(value, np.multiply(code, step, out=code), out=error)
            error *= 1 / upper[j, j]
            loss += np.multiply(error, error, out=code)
        if last < size:
            _subtract(values[last:], upper[first:last, last:], errors[first:last])
    return errors.reshape(size, *shape), loss.reshape(shape)


def _subtract(values: Floats, factors: Floats, errors: Floats) -> None:
    """Values -= factorsᵀ · errors, in place. By torch: NumPy's BLAS starts threads for products this small."""
    torch.from_numpy(values).addmm_(torch.from_numpy(factors).T, torch.from_numpy(errors), alpha=-1)


def _losses(block: Floats, scales: Floats, zeros: Floats, bits: int, weight: Floats | float = 1.0) -> Floats:
    """Squared error [grids, rows] of rounding blocks [size, rows] plainly on each grid, columns weighted."""
    losses = np.empty_like(scales)
    error = np.empty_like(block)
    for scale, low, loss in zip(scales, -zeros, losses, strict=True):
        np.rint(np.multiply(block, 1 / scale, out=error), out=error)
        np.minimum(np.maximum(error, low, out=error), low + (2**bits - 1), out=error)
        error *= scale
        error -= block
        error *= weight
        np.einsum("ij,ij->j", error, error, out=loss)
    return losses


def _candidates(block: Floats, bits: int, *, symmetric: bool) -> tuple[Floats, Floats]:
    """Grids worth trying for blocks [size, rows]: scales and zero points, each [candidates, rows]."""
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    low, high = np.minimum(block.min(0), 0), np.maximum(block.max(0), 0)
    parts = np.array(FOUR if bits == 4 else EIGHT, np.float32)[:, None]
    # Of a range about a middle only the lower end, -2^(bits - 1), is a code, so the far end goes there.
    far = np.where(high > -low, high, low)[None] / -middle
    if symmetric:
        scales = np.concatenate([parts * far, parts * -far])
        zeros = np.full_like(scales, middle)
    else:
        scales = parts * (high - low) / top
        centre = np.floor((top - (high + low) / np.maximum(scales, 1e-30)) / 2)
        plain = parts[:2] * far if bits == 8 else far  # finds weights that were symmetric before
        zeros = np.concatenate([centre, centre + 1, np.full_like(plain, middle)]).clip(0, top)
        scales = np.concatenate([scales, scales, plain])
    return np.where(np.abs(scales) < 1e-20, np.float32(1), scales), zeros

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
from adaptc.ir.grid import Grid, candidates, rounding_losses

Floats = npt.NDArray[np.float32]
Order = npt.NDArray[np.int64]

FINALISTS = 2
"""Candidate grids of a block that GPTQ itself is run on."""

STRIP = 8
"""Columns rounded one by one before their errors reach the rest of the block by a matrix product."""

DAMPING = 0.01
"""Added to the Hessian's diagonal, as a part of its mean: calibration inputs do not say everything."""


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
    scales, zeros = candidates(block, bits, symmetric=symmetric)
    weight = np.reciprocal(upper.diagonal()[:, None])
    losses = rounding_losses(block, scales, zeros, bits, weight)
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

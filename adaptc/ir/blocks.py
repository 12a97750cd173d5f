"""A matrix in blocks of 4 or 8 bits, in the layout of ONNX Runtime's MatMulNBits.

A block is `block_size` neighbouring weights of one row that share a scale and a zero point:
weight = (code - zero point) · scale, codes 0 .. 2^bits - 1. Without zero points the zero point is 2^(bits - 1).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from adaptc.errors import PassError
from adaptc.ir.grid import Grid, rows_at_a_time, search_grid
from adaptc.ir.unread.rows import Rows
from adaptc.runtime.backends.onnxruntime_cpu.cores import physical_cores

Bits = Literal[4, 8]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


LEAST_BLOCK = 16
"""Weights of the smallest block that kernels have."""

_PORTION = 4
"""Parts of a matrix that stay in the cache which one thread takes at a time: then threads seldom wait for another."""

LARGEST = 1e15
"""Squares of larger weights, and their sums over a block, leave float32."""


class Search(Protocol):
    """Finds grids for a matrix, as `search_grid` does."""

    def __call__(self, matrix: Floats, bits: int, block_size: int, *, symmetric: bool) -> Grid: ...


@dataclass(frozen=True, slots=True)
class Blocks:
    """A quantized matrix [rows, columns], ready to be MatMulNBits' inputs B, scales and zero_points.

    Attributes:
        packed: uint8 [rows, blocks, block_size · bits / 8]; of two 4-bit codes the first has the low half.
        scales: float32 [rows, blocks].
        zero_points: uint8 [rows, ceil(blocks · bits / 8)], packed alike; None: all are 2^(bits - 1).
        columns: Columns of the matrix; the last block is padded with weights of 0 if they do not fill it.
        bits: Bits of a code.
        block_size: Weights in a block: 16, 32, 64, 128 or 256.
    """

    packed: Bytes
    scales: Floats
    zero_points: Bytes | None
    columns: int
    bits: Bits
    block_size: int

    @property
    def rows(self) -> int:
        """Rows of the matrix (outputs)."""
        return int(self.scales.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points: what a matrix-vector product reads."""
        zeros = 0 if self.zero_points is None else self.zero_points.nbytes
        return self.packed.nbytes + self.scales.nbytes + zeros


def nearest_blocks(
    weight: Rows, bits: Bits, block_size: int = 32, *, symmetric: bool = False, search: Search = search_grid
) -> Blocks:
    """Give each weight of a matrix the nearest code on its block's grid: by default that of the least squared error.

    Some rows are worked on at a time, by every processor; of a matrix that is not read yet no others are held.

    Args:
        weight: float32 [rows, columns], as in `y = x @ weight.T`.
        bits: 4 or 8.
        block_size: Neighbouring columns that share a scale: 16, 32, 64, 128 or 256.
        symmetric: Do without zero points.
        search: Finds the grid of some rows, as `search_grid` does.

    Raises:
        PassError: a shape does not fit, or a value is not finite.
    """
    rows, columns = weight.shape
    step = _PORTION * rows_at_a_time(max(1, columns + -columns % block_size))
    if rows <= step:
        return _nearest(weight[:], bits, block_size, (rows, columns), symmetric, search)
    count = -(-columns // block_size)
    packed = np.empty((rows, count, block_size * bits // 8), np.uint8)
    scales = np.empty((rows, count), np.float32)
    zeros = None if symmetric else np.empty((rows, -(-count * bits // 8)), np.uint8)

    def fill(first: int) -> None:
        span = slice(first, first + step)
        part = _nearest(weight[span], bits, block_size, (rows, columns), symmetric, search)
        packed[span], scales[span] = part.packed, part.scales
        if zeros is not None and part.zero_points is not None:
            zeros[span] = part.zero_points

    with ThreadPoolExecutor(physical_cores()) as pool:
        for _ in pool.map(fill, range(0, rows, step)):
            pass
    return Blocks(packed, scales, zeros, columns, bits, block_size)


def _nearest(
    weight: Floats, bits: Bits, block_size: int, whole: tuple[int, int], symmetric: bool, search: Search
) -> Blocks:
    """The nearest codes of some rows of a matrix of the shape `whole`."""
    matrix = padded(weight, block_size, whole)
    grid = search(matrix, bits, block_size, symmetric=symmetric)
    return packed_blocks(grid.encode(matrix), grid, weight.shape[1], symmetric=symmetric)


def padded(weight: Floats, block_size: int, whole: tuple[int, int] | None = None) -> Floats:
    """A matrix with columns of 0 until its last blocks are full: float32 [rows, blocks · block_size].

    Args:
        weight: float32 [rows, columns].
        block_size: Columns in a block.
        whole: Shape of the matrix that these are rows of, for messages.

    Raises:
        PassError: no kernel takes blocks of this size, or a value is not finite or too large for one.
    """
    rows, columns = weight.shape
    if block_size not in (16, 32, 64, 128, 256):
        raise PassError(f"block size {block_size}: ONNX Runtime has kernels for 16, 32, 64, 128 and 256")
    if not np.isfinite(weight).all():
        shape = list(whole or (rows, columns))
        raise PassError(f"a weight of shape {shape} holds NaN or infinity; nothing can be quantized from it")
    if columns and np.abs(weight).max() > LARGEST:
        raise PassError(
            f"a weight of {np.abs(weight).max():.3g}: the error of its block is no float; weights: fp32 is right"
        )
    return np.pad(weight, ((0, 0), (0, -columns % block_size)))


def packed_blocks(codes: Floats | Bytes, grid: Grid, columns: int, *, symmetric: bool) -> Blocks:
    """The blocks of codes on a grid.

    Args:
        codes: float32 [rows, blocks · block_size] of whole numbers, or uint8.
        grid: Their scales and zero points.
        columns: Columns of the matrix, without those that only fill its last blocks.
        symmetric: Do without zero points.
    """
    bits: Bits = 8 if grid.bits == 8 else 4
    zeros = None if symmetric else _pack(grid.zeros.astype(np.uint8), bits)
    packed = _pack(codes.astype(np.uint8, copy=False).reshape(*grid.scales.shape, grid.block_size), bits)
    return Blocks(packed, grid.scales, zeros, columns, bits, grid.block_size)


def _pack(codes: Bytes, bits: Bits) -> Bytes:
    """Pack along the last axis; an odd last code stands alone in its byte."""
    if bits == 8:
        return np.ascontiguousarray(codes)
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], -1)
    return np.ascontiguousarray(codes[..., 0::2] | (codes[..., 1::2] << 4))

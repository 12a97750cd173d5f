"""A source's own codes as blocks that ONNX Runtime multiplies by: exactly where its grid is one of them, else nearly.

A grid without offsets is one: codes and scales are taken as they are, in 4 bits or in 8. Of a grid with offsets,
weight = (code - zero) · scale + offset, the whole scales in an offset go into the zero point, and what is left, half a
scale at most, into columns of its own: a block's offset multiplies the sum of the block's inputs. So a product reads
the means of its input's blocks too, one number for `block_size`. The offset columns are the one thing that is rounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adaptc.errors import PassError
from adaptc.ir.blocks import Bits, Blocks, nearest_blocks, packed_blocks, padded
from adaptc.ir.grid import Grid, search_grid
from adaptc.ir.source_grid import SourceGrid
from adaptc.passes.quantize.blockwise import concatenate, dequantize

Floats = npt.NDArray[np.float32]

SIZES = (128, 64, 32, 16)
"""Block sizes that larger groups are cut into, from the one that is tried first."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceBlocks:
    """A matrix of a source in blocks.

    Attributes:
        blocks: The codes; of `means`, with a column for each block of the matrix's own columns behind these.
        means: Whether it multiplies its input and the means of the input's blocks.
        order: Which input each column multiplies, int64 [columns]; None where they lie in order.
        exact: Whether it is the source's matrix, number by number.
        error: ‖stored - source‖ and ‖source‖; both 0 where it is exact, as neither is needed.
    """

    blocks: Blocks
    means: bool = False
    order: npt.NDArray[np.int64] | None = None
    exact: bool = True
    error: tuple[float, float] = (0.0, 0.0)

    def like(self, other: SourceBlocks) -> bool:
        """Whether two matrices over one input can be stacked."""
        one, two = self.blocks, other.blocks
        same = (one.bits, one.block_size, one.columns, one.zero_points is None, self.means) == (
            two.bits, two.block_size, two.columns, two.zero_points is None, other.means,
        )  # fmt: skip
        if not same or (self.order is None) != (other.order is None):
            return False
        return self.order is None or np.array_equal(self.order, other.order)  # type: ignore[arg-type]

    @property
    def form(self) -> str:
        """How it is stored, in words."""
        zeros = "" if self.blocks.zero_points is None else ", zero points"
        return (
            f"int{self.blocks.bits}, blocks of {self.blocks.block_size}{zeros}"
            f"{', offset columns' if self.means else ''}{', columns reordered' if self.order is not None else ''}"
        )


def stacked(parts: list[SourceBlocks]) -> SourceBlocks:
    """The rows of several matrices that are `like` each other."""
    first = parts[0]
    blocks = concatenate([part.blocks for part in parts])
    return SourceBlocks(blocks, first.means, first.order, all(part.exact for part in parts))


def source_blocks(grid: SourceGrid, *, offset_columns: bool = True) -> SourceBlocks | None:
    """Bring a source's grid into blocks.

    Args:
        grid: As the source holds it.
        offset_columns: Whether the means of blocks can be multiplied too.

    Returns:
        The blocks, exact but for offsets; None where neither kernels nor offset columns have this grid.

    Raises:
        PassError: a scale is not finite.
    """
    if not np.isfinite(grid.scales).all():
        raise PassError("scales are not finite; the file is damaged")
    size = block_size_of(grid)
    if size is None:
        return None
    scales, zeros, offsets = _of_blocks(grid, size)
    if offsets is None:
        return _plain(grid, size, scales, zeros)
    if not offset_columns or grid.codes.shape[1] % size or not np.isfinite(offsets).all():
        return None
    return _with_means(grid, size, scales, zeros, offsets)


def block_size_of(grid: SourceGrid) -> int | None:
    """The block size that a grid's groups are, or can be cut into; None if kernels have none."""
    columns = grid.codes.shape[1]
    whole = grid.scales.shape[1] == 1
    if whole:
        return next((size for size in SIZES if columns % size == 0), 32)
    if grid.group == 256:
        return 256
    return next((size for size in SIZES if grid.group % size == 0), None)


def nearest(matrix: Floats, block_size: int) -> SourceBlocks:
    """A matrix that lies on no grid of blocks, in 8 bits.

    Raises:
        PassError: a value is not finite, or too large.
    """
    return _measured(SourceBlocks(nearest_blocks(matrix, 8, block_size), exact=False), matrix)


def dense(held: SourceBlocks) -> Floats:
    """The matrix that blocks stand for: float32 [rows, columns], without offset columns and in order."""
    values = dequantize(held.blocks)
    if held.means:
        size = held.blocks.block_size
        columns = held.blocks.columns * size // (size + 1)
        offsets = np.repeat(values[:, columns:] / np.float32(size), size, 1)
        values = values[:, :columns] + offsets
    if held.order is not None:
        stored, values = values, np.empty_like(values)
        values[:, held.order] = stored
    return values


def _of_blocks(grid: SourceGrid, size: int) -> tuple[Floats, npt.NDArray[np.int16], Floats | None]:
    """Scales, zeros and offsets of blocks, each [rows, blocks]; zeros may be [1, 1]."""
    count = -(-grid.codes.shape[1] // size)
    times = count if grid.scales.shape[1] == 1 else grid.group // size

    def cut(each: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return each if times == 1 else np.repeat(each, times, 1)[:, :count]

    zeros = grid.zeros if grid.zeros.shape == (1, 1) else cut(grid.zeros)
    return cut(grid.scales), zeros, None if grid.offsets is None else cut(grid.offsets)  # type: ignore[return-value]


def _plain(grid: SourceGrid, size: int, scales: Floats, zeros: npt.NDArray[np.int16]) -> SourceBlocks | None:
    low, high = int(zeros.min()), int(zeros.max())
    bits: Bits
    for bits in (4, 8):
        top, shift = 2**bits - 1, 2 ** (bits - 1) - low
        if low == high and 0 <= shift <= top - (grid.levels - 1):
            return SourceBlocks(_pack(grid, size, scales, None, bits, shift), order=grid.order)
        if grid.levels - 1 <= top and low >= 0 and high <= top:
            spread = np.broadcast_to(zeros, scales.shape).astype(np.float32)
            return SourceBlocks(_pack(grid, size, scales, spread, bits, 0), order=grid.order)
    return None


def _pack(grid: SourceGrid, size: int, scales: Floats, zeros: Floats | None, bits: Bits, shift: int) -> Blocks:
    """Blocks of codes that are moved up by `shift`; without zero points where `zeros` is None."""
    columns = grid.codes.shape[1]
    # What fills a last block meets no input; a code of zero keeps it a weight of 0 even so.
    fill = 2 ** (bits - 1) if zeros is None else 0
    codes = np.pad(grid.codes + np.uint8(shift), ((0, 0), (0, -columns % size)), constant_values=fill)
    whole = Grid(np.ascontiguousarray(scales), np.float32(0) if zeros is None else zeros, bits, size)
    return packed_blocks(codes, whole, columns, symmetric=zeros is None)


def _with_means(
    grid: SourceGrid, size: int, scales: Floats, zeros: npt.NDArray[np.int16], offsets: Floats
) -> SourceBlocks:
    bits: Bits = 4 if grid.levels <= 16 else 8
    whole = np.zeros_like(offsets)
    np.divide(-offsets, scales, out=whole, where=scales != 0)
    points = np.clip(np.rint(np.clip(whole, -512, 512)) + zeros, 0, 2**bits - 1).astype(np.float32)
    rest = offsets + (points - zeros) * scales
    columns = padded(rest * np.float32(size), size)
    means = search_grid(columns, bits, size, symmetric=False)
    codes = np.concatenate([grid.codes, means.encode(columns).astype(np.uint8)], 1)
    joined = Grid(
        np.concatenate([scales, means.scales], 1), np.concatenate([points, means.zeros], 1), bits, size
    )  # fmt: skip
    width = grid.codes.shape[1] + rest.shape[1]
    blocks = packed_blocks(codes, joined, width, symmetric=False)
    return _measured(SourceBlocks(blocks, means=True, order=grid.order, exact=not rest.any()), grid.dense())


def _measured(held: SourceBlocks, matrix: Floats) -> SourceBlocks:
    """The same with its error."""
    if held.exact:
        return held
    error = dense(held) - matrix
    norms = float(np.linalg.norm(error)), float(np.linalg.norm(matrix))
    return SourceBlocks(held.blocks, held.means, held.order, not error.any(), norms)

"""Products of a few rows over packed weights: what `packed_gemm.cu` is compiled with, and how it is started."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.driver.kernel_source import KernelSource
from adaptc.runtime.backends.cuda.kernels.files import read_kernels
from adaptc.runtime.bundle.device_step import GemmWeight

ROWS = 64
"""Most rows of a launch."""

WARPS = 8
"""Warps of a block."""

FEW = 8
"""Most rows for which the warps of a block share a tile's columns."""

MOST_SPLITS = 16
"""Most blocks that share a tile's columns."""

_TILE = 16  # results
_NAMES = ("packed_gemm_8", "packed_gemm_16", "packed_gemm_32", "packed_gemm_64")
_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float


@dataclass(frozen=True, slots=True)
class Layout:
    """How a weight is packed.

    Attributes:
        bits: 4, 8 or 16.
        parts: Scales of a lane's columns in a chunk.
        results: Rows of the weight.
        columns: Its columns.
    """

    bits: int
    parts: int
    results: int
    columns: int

    @classmethod
    def of(cls, weight: GemmWeight) -> Layout:
        """The layout of a weight; floats are packed in half precision."""
        bits = min(weight.bits, 16)
        parts = max(1, 128 // bits // weight.block) if bits < 16 else 1
        return cls(bits, parts, weight.results, weight.columns)

    @property
    def tiles(self) -> int:
        """Tiles of 16 results."""
        return -(-self.results // _TILE)

    @property
    def chunks(self) -> int:
        """Pieces of a tile, 1 KB of codes each."""
        return -(-self.columns // (512 // self.bits))

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes."""
        return self.tiles * self.chunks * 1024

    @property
    def scale_bytes(self) -> int:
        """Bytes of the scales."""
        return self.tiles * self.chunks * self.parts * 128

    @property
    def zero_bytes(self) -> int:
        """Bytes of the zero points."""
        return self.tiles * self.chunks * self.parts * 32 * (self.bits // 4)


def gemm_source(bits: int, parts: int) -> KernelSource:
    """The source for weights of some bits."""
    return read_kernels(("common", "packed_gemm"), f"BITS={bits}", f"PARTS={parts}", f"WARPS={WARPS}")


def gemm_kernels(cuda: Cuda, layout: Layout) -> dict[str, Any]:
    """The kernels for a layout, compiled when they are first asked for."""
    names = (*_NAMES, "pack_codes", *(["pack_scales"] if layout.bits < 16 else []))
    return cuda.kernels(gemm_source(layout.bits, layout.parts), names)


def splits_of(layout: Layout, rows: int, multiprocessors: int) -> int:
    """Blocks that share the columns of a tile, for more than a few rows."""
    if rows <= FEW:
        return 1
    blocks = -(-layout.tiles // WARPS)
    return max(1, min(MOST_SPLITS, layout.chunks, round(2 * multiprocessors / blocks)))


def enqueue_gemm(
    cuda: Cuda,
    layout: Layout,
    rows: int,
    addresses: Sequence[int],
    factor: float,
    stride: int,
    skip: tuple[int, int],
    scratch: tuple[int, int],
    stream: Any,
) -> None:
    """Multiply in the stream's order.

    Args:
        cuda: The GPU.
        layout: Of the weight.
        rows: At most `ROWS`.
        addresses: Of codes, scales, zero points, bias, rows and result; 0 for what there is not.
        factor: What the sums are multiplied by.
        stride: Numbers of a row of the result.
        skip: Address of what rows want, a byte each, or 0; and `inverse` of the kernel.
        scratch: Addresses of `parts` and `arrived` of the kernel.
        stream: In whose order; it may be capturing.
    """
    kernel = gemm_kernels(cuda, layout)[_NAMES[sum(rows > most for most in (8, 16, 32))]]
    codes, scales, zeros, bias, x, y = addresses
    splits = splits_of(layout, rows, cuda.device.multiprocessors)
    if rows <= FEW:
        grid = min(layout.tiles, 2 * cuda.device.multiprocessors)
    else:
        grid = -(-layout.tiles // WARPS) * splits
    args = [
        *((address, _POINTER) for address in (codes, scales, zeros, bias)),
        (factor, _FLOAT),
        (x, _POINTER),
        (y, _POINTER),
        *((size, _INT) for size in (layout.results, layout.columns, stride, rows)),
        (skip[0], _POINTER),
        (skip[1], _INT),
        (scratch[0], _POINTER),
        (scratch[1], _POINTER),
        (splits, _INT),
    ]
    cuda.launch(kernel, (grid,), 32 * WARPS, args, stream, early=True)

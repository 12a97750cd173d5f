"""Products of a few rows over packed weights: what `packed_gemm.cu` is compiled with, and how it is started."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.driver.kernel_source import KernelSource
from adaptc.runtime.backends.cuda.kernels.files import read_kernels
from adaptc.runtime.bundle.gpu_steps.device_step import GemmWeight

ROWS = 64
"""Most rows of a launch."""

WARPS = 8
"""Warps of a block of more than a few rows."""

FEW = 8
"""Most rows for which the warps of a block share a tile's columns."""


X_STAGES = 4
"""Chunks of more than a few rows that a block has on their way."""

MANY_TILES = 1024
"""Tiles from which fewer warps share one: there are enough for all warps, and each tile ends with a barrier."""

SMALL_BYTES = 4 << 20
"""Size up to which a weight is read again, from the GPU's own cache, for every `FEW` rows: that is quicker than
sharing its columns among blocks that wait for each other."""

MOST_SPLITS = 16
"""Most blocks that share a tile's columns."""

PAIRS = ("", "silu", "gelu", "gelu_tanh")
"""What joins the halves of a product, in the kernel's numbers."""

_TILE = 16  # results
_NAMES = ("packed_gemm_8", "packed_gemm_16", "packed_gemm_32", "packed_gemm_64")
_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float


@dataclass(frozen=True, slots=True)
class Few:
    """How up to `FEW` rows are multiplied; what was quickest on an H200.

    Attributes:
        warps: Of a block; they share a tile's columns.
        stages: Chunks that a warp has on their way.
        together: Blocks that a multiprocessor runs at once.
    """

    warps: int
    stages: int
    together: int


@dataclass(frozen=True, slots=True)
class PackedLayout:
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
    def of(cls, weight: GemmWeight) -> PackedLayout:
        """The layout of a weight; floats are packed in half precision."""
        bits = min(weight.bits, 16)
        parts = max(1, 128 // bits // weight.block) if bits < 16 else 1
        return cls(bits, parts, weight.results, weight.columns)

    @property
    def few(self) -> Few:
        """How a few rows are multiplied."""
        if self.bits == 16:
            return Few(warps=16, stages=4, together=2)
        return Few(warps=4, stages=6, together=6) if self.tiles >= MANY_TILES else Few(warps=8, stages=4, together=3)

    @property
    def tiles(self) -> int:
        """Tiles of 16 results."""
        return -(-self.results // _TILE)

    @property
    def chunks(self) -> int:
        """Pieces of a tile, 1 KB of codes each."""
        return -(-self.columns // (512 // self.bits))

    @property
    def record_bytes(self) -> int:
        """Bytes of a chunk: codes, scales and zero points."""
        return 1024 + (self.parts * (128 + 8 * self.bits) if self.bits < 16 else 0)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's columns between two barriers, in shared memory."""
        return self.bits // 4 * 8 * (128 // self.bits + (0 if self.bits == 16 else 8))

    @property
    def bytes(self) -> int:
        """Bytes of the packed weight."""
        return self.tiles * self.chunks * self.record_bytes

    @property
    def ragged(self) -> bool:
        """Whether the last chunk is not whole."""
        return self.columns % (512 // self.bits) != 0


def gemm_source(layout: PackedLayout) -> KernelSource:
    """The source for weights of a layout."""
    own = f"BITS={layout.bits}", f"PARTS={layout.parts}", f"RAGGED={int(layout.ragged)}"
    warps = f"WARPS={WARPS}", f"FEW_WARPS={layout.few.warps}", f"FEW_BLOCKS={layout.few.together}"
    return read_kernels(("common", "packed_gemm"), *own, *warps, f"STAGES={layout.few.stages}", f"X_STAGES={X_STAGES}")


def gemm_kernels(cuda: Cuda, layout: PackedLayout) -> dict[str, Any]:
    """The kernels for a layout, compiled when they are first asked for."""
    names = (*_NAMES, "pack_codes", *(["pack_scales"] if layout.bits < 16 else []))
    return cuda.kernels(gemm_source(layout), names)


def splits_of(layout: PackedLayout, rows: int, multiprocessors: int) -> int:
    """Blocks that share the columns of a tile, for more than a few rows."""
    if rows <= FEW:
        return 1
    blocks = -(-layout.tiles // WARPS)
    return max(1, min(MOST_SPLITS, layout.chunks, round(2 * multiprocessors / blocks)))


def _most_rows(rows: int) -> int:
    """Rows of the kernel that serves so many."""
    return next(most for most in (8, 16, 32, 64) if rows <= most)


def enqueue_gemm(
    cuda: Cuda,
    layout: PackedLayout,
    rows: int,
    addresses: Sequence[int],
    factor: float,
    stride: int,
    pair: str,
    skip: tuple[int, int],
    scratch: tuple[int, int],
    stream: Any,
    small: int = SMALL_BYTES,
) -> None:
    """Multiply in the stream's order.

    Args:
        cuda: The GPU.
        layout: Of the weight.
        rows: At most `ROWS`.
        addresses: Of the packed weight, bias, rows and result; 0 for no bias.
        factor: What the sums are multiplied by.
        stride: Numbers of a row of the result.
        pair: See `GemmWeight.pair`.
        skip: Address of what rows want, a byte each, or 0; and `inverse` of the kernel.
        scratch: Addresses of `parts` and `arrived` of the kernel.
        stream: In whose order; it may be capturing.
        small: Bytes up to which a weight is read again for every `FEW` rows.
    """
    few, is_few = layout.few, rows <= FEW or layout.bytes <= small
    most = FEW if is_few else _most_rows(rows)
    kernel = gemm_kernels(cuda, layout)[f"packed_gemm_{most}"]
    records, bias, x, y = addresses
    splits = splits_of(layout, rows, cuda.device.multiprocessors)
    grid: tuple[int, ...] = (-(-layout.tiles // WARPS) * splits,)
    if is_few:
        grid = min(layout.tiles, few.together * cuda.device.multiprocessors), -(-rows // FEW)
    args = [
        *((address, _POINTER) for address in (records, bias)),
        (factor, _FLOAT),
        (x, _POINTER),
        (y, _POINTER),
        *((size, _INT) for size in (layout.results, layout.columns, stride, PAIRS.index(pair), rows)),
        (skip[0], _POINTER),
        (skip[1], _INT),
        (scratch[0], _POINTER),
        (scratch[1], _POINTER),
        (splits, _INT),
    ]
    warps = few.warps if is_few else WARPS
    ring = few.warps * few.stages * layout.record_bytes
    shared = ring if is_few else X_STAGES * layout.row_bytes * most
    cuda.launch(kernel, grid, 32 * warps, args, stream, early=True, shared=shared)

"""Packed weights back to half precision, row by row: what `unpack.cu` is compiled with, and how it is started."""

from __future__ import annotations

import ctypes
from typing import Any

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.driver.kernel_source import KernelSource
from adaptc.runtime.backends.cuda.kernels.files import read_kernels
from adaptc.runtime.backends.cuda.kernels.packed_gemm import PAIRS, PackedLayout

_THREADS, _BLOCKS = 256, 8  # of a multiprocessor
_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float


def unpack_source(layout: PackedLayout) -> KernelSource:
    """The source for weights of a layout."""
    return read_kernels(("common", "unpack"), f"BITS={layout.bits}", f"PARTS={layout.parts}")


def unpack_kernel(cuda: Cuda, layout: PackedLayout) -> Any:
    """The kernel for a layout, compiled when it is first asked for."""
    return cuda.kernels(unpack_source(layout), ["unpack"])["unpack"]


def enqueue_unpack(
    cuda: Cuda, layout: PackedLayout, records: int, to: int, factor: float, pair: str, stream: Any
) -> None:
    """Write a weight as halves in the stream's order.

    Args:
        cuda: The GPU.
        layout: Of the weight.
        records: Address of the packed weight.
        to: Address of float16[results, columns].
        factor: What the weight is multiplied by.
        pair: See `GemmWeight.pair`.
        stream: In whose order.
    """
    pointers = [(records, _POINTER), (to, _POINTER)]
    sizes = [(size, _INT) for size in (layout.results, layout.columns, PAIRS.index(pair))]
    eights = layout.tiles * layout.chunks * 64 * (16 // layout.bits)
    grid = min(-(-eights // _THREADS), _BLOCKS * cuda.device.multiprocessors)
    cuda.launch(unpack_kernel(cuda, layout), (grid,), _THREADS, [*pointers, *sizes, (factor, _FLOAT)], stream)

"""Skinny GEMM: a few rows of activations times a weight, y = x·Wᵀ, by a kernel of ours that reads the weight once.

Engines multiply by kernels made for many rows. A step of a decoder has few, and nearly all its time goes into reading
weights, so the GEMMs of steps run here and those of prompts in engines.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.driver.kernel_source import KernelSource
from adaptc.runtime.backends.cuda.kernels.files import read_kernels
from adaptc.runtime.bundle.partitions import PartitionGraph, Partitions, When

ROWS = 32
"""Most rows that are multiplied here; more are an engine's."""

TILE, ROW_TILE, WARPS = 16, 8, 8
"""Results and rows of a block, and the warps that share their columns."""

WHOLE = 32
"""Columns that a warp sums at a time; of others there must be a multiple of 8, for copies of 16 bytes."""

LEAST_SM = 80
"""Compute capability from which there are the instructions."""


@dataclass(frozen=True, slots=True)
class SkipFlag:
    """Where a GEMM of a gated block reads whether it runs.

    Attributes:
        runs: Address of a byte that is 0 if the GEMM is left out; 0 for a GEMM without a gate.
        zeros: Whether one that is left out writes zeros; else its result stays as it is.
    """

    runs: int = 0
    zeros: bool = False


NO_FLAG = SkipFlag()


def source_of(half: str) -> KernelSource:
    """The kernel's source for a type of weights: "float16", "bfloat16"."""
    return read_kernels("skinny_gemm", f"WARPS={WARPS}", *(["BFLOAT"] if half == "bfloat16" else []))


def is_skinny(graph: PartitionGraph, rows: int, sm: int) -> bool:
    """Whether the kernel computes this graph for so many rows on a GPU of this capability."""
    return sm >= LEAST_SM and graph.gemm and rows <= ROWS


def gemms_read_gate(partitions: Partitions, when: When, rows: int, sm: int) -> bool:
    """Whether leaving out a block's GEMMs leaves out all that costs: zeros stand in for the block, and it ends in one.

    What lies between its GEMMs then runs over whatever is there, and nobody reads its result. That should
    cost less than a conditional node, 5 to 11 µs (docs/results/tensorrt-h200.md).
    """
    graphs = [partitions.graphs[call.graph] for call in when.then]
    others = [graph for graph in graphs if not is_skinny(graph, rows, sm)]
    small = all(graph.weights == 0 and all("kv_bucket" not in spec.shape for spec in graph.inputs) for graph in others)
    return not when.otherwise and small and graphs[-1] not in others


class SkinnyGemm:
    """The kernel, compiled for one type of weights."""

    def __init__(self, cuda: Cuda, half: str) -> None:
        """Compile it.

        Args:
            cuda: The GPU.
            half: Type of weights and rows: "float16", "bfloat16".

        Raises:
            EngineError: NVRTC is not installed.
        """
        self._cuda = cuda
        self._sm = cuda.device.sm
        if self._sm >= LEAST_SM:
            self._kernels = cuda.kernels(source_of(half), ("skinny_gemm", "skinny_gemm_ragged"))

    def serves(self, graph: PartitionGraph, rows: int) -> bool:
        """Whether it computes this graph for so many rows."""
        return is_skinny(graph, rows, self._sm)

    def enqueue(
        self,
        graph: PartitionGraph,
        rows: int,
        reads: Sequence[int],
        writes: Sequence[int],
        stream: Any,
        flag: SkipFlag = NO_FLAG,
    ) -> None:
        """Multiply in the stream's order.

        Args:
            graph: A GEMM: half[rows, columns] and half[results, columns] give float32[rows, results].
            rows: At most `ROWS`.
            reads: Addresses of rows and weight, of 16 bytes' alignment.
            writes: Address of the result.
            stream: In whose order; it may be capturing.
            flag: Whether it is left out.
        """
        results, columns = (int(size) for size in graph.inputs[1].shape)
        pointer, whole = ctypes.c_void_p, ctypes.c_int
        places = [(address, pointer) for address in (reads[1], reads[0], writes[0])]
        sizes = [(size, whole) for size in (results, columns, rows)]
        asked = [(flag.runs, pointer), (int(flag.zeros), whole)]
        grid = -(-results // TILE), -(-rows // ROW_TILE)
        kernel = self._kernels["skinny_gemm_ragged" if columns % WHOLE else "skinny_gemm"]
        self._cuda.launch(kernel, grid, 32 * WARPS, [*places, *sizes, *asked], stream)

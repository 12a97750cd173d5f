"""Skinny GEMM: a few rows of activations times a weight, y = x·Wᵀ, by a kernel of ours that reads the weight once.

Engines multiply by kernels made for many rows. A step of a decoder has few, and nearly all its time goes into reading
weights, so the GEMMs of steps run here and those of prompts in engines.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adaptc.runtime.backends.cuda.driver import Cuda
from adaptc.runtime.bundle.partitions import PartitionGraph, Partitions, When

ROWS = 32
"""Most rows that are multiplied here; more are an engine's."""

TILE, ROW_TILE, WARPS = 16, 8, 8
"""Results and rows of a block, and the warps that share their columns."""

WHOLE = 32
"""Columns that a warp sums at a time; of others there must be a multiple of 8, for copies of 16 bytes."""

LEAST_SM = 80
"""Compute capability from which there are the instructions."""

SOURCE = r"""
#define WARPS 8
#define STAGES 4
typedef unsigned short u16;
typedef unsigned int u32;

// A GEMM of a gated block reads its gate itself: if it is left out, it reads no weight, and may give zeros.
static __device__ bool left_out(float* y, int results, int rows, const unsigned char* runs, int zeros) {
    if (!runs || *runs) return false;
    for (int i = threadIdx.x; zeros && i < 128; i += blockDim.x) {
        int result = blockIdx.x * 16 + i % 16, row = blockIdx.y * 8 + i / 16;
        if (result < results && row < rows) y[(long long)row * results + result] = 0;
    }
    return true;
}

#if defined(ON_CPU) && !defined(ON_WARPS)
// The same sums, by any number of threads.
template <bool ragged>
static __device__ void multiply(const u16* weight, const u16* x, float* y, int results, int columns, int rows,
                                const unsigned char* runs, int zeros) {
    if (left_out(y, results, rows, runs, zeros)) return;
    for (int i = threadIdx.x; i < 128; i += blockDim.x) {
        int result = blockIdx.x * 16 + i % 16, row = blockIdx.y * 8 + i / 16;
        if (result >= results || row >= rows) continue;
        float sum = 0;
        for (int k = 0; k < columns; ++k)
            sum += from_half(weight[(long long)result * columns + k]) * from_half(x[(long long)row * columns + k]);
        y[(long long)row * results + result] = sum;
    }
}
#else
#ifndef ON_CPU
// 16 bytes into shared memory, or as many zeros.
static __device__ __forceinline__ void fetch(uint4* to, const uint4* from, bool there) {
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"((u32)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(there ? 16 : 0));
}
static __device__ __forceinline__ void fetched() { asm volatile("cp.async.commit_group;"); }
static __device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory"); }
static __device__ __forceinline__ void wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#ifdef BFLOAT
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#endif
// c += a · b of 16 x 16 and 16 x 8, spread over the lanes of a warp.
static __device__ __forceinline__ void mma(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile(MMA " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif

// A block gives 16 results of 8 rows; each warp sums a share of the columns, 32 at a time, through a ring of copies
// that are under way. Each lane reads back only what it copied itself. The order of columns inside an mma does not
// matter as long as both factors have the same, so a lane takes 8 neighbours, one copy, for two mma of 16. Ragged
// columns are a multiple of 8; past the last of them a lane takes zeros. Asking for that takes registers, and with more
// than 64 of them a multiprocessor holds three blocks in the place of four, so columns of whole 32s do not ask.
template <bool ragged>
static __device__ __forceinline__ void multiply(const u16* weight, const u16* x, float* y, int results, int columns,
                                                int rows, const unsigned char* runs, int zeros) {
    if (left_out(y, results, rows, runs, zeros)) return;
    __shared__ uint4 ring[WARPS][STAGES][2][32];
    __shared__ float sums[WARPS][16][9];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, place = lane % 4;
    int first = blockIdx.x * 16, start = blockIdx.y * 8, count = rows - start < 8 ? rows - start : 8;
    int chunks = (columns + 31) / 32, share = (chunks + WARPS - 1) / WARPS;
    int from = warp * share, to = from + share < chunks ? from + share : chunks, last = results - 1;
    int low = first + group < last ? first + group : last, high = first + group + 8 < last ? first + group + 8 : last;
    const uint4* upper = (const uint4*)(weight + (long long)low * columns) + place;
    const uint4* lower = (const uint4*)(weight + (long long)high * columns) + place;
    bool mine = group < count;
    int whole = (columns / 8 - place + 3) / 4;  // 32 columns at a time of which this lane has its 8
    const uint4* given = (const uint4*)(x + (long long)(start + (mine ? group : 0)) * columns) + place;
    float c[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < STAGES - 1; ++i) {
        if (from + i < to) {
            fetch(&ring[warp][i][0][lane], upper + (from + i) * 4, !ragged || from + i < whole);
            fetch(&ring[warp][i][1][lane], lower + (from + i) * 4, !ragged || from + i < whole);
        }
        fetched();
    }
    for (int i = 0; from + i < to; ++i) {
        uint4 b = {0, 0, 0, 0};
        if (mine && (!ragged || from + i < whole)) b = given[(from + i) * 4];
        wait();
        int next = i + STAGES - 1;
        if (from + next < to) {
            fetch(&ring[warp][next % STAGES][0][lane], upper + (from + next) * 4, !ragged || from + next < whole);
            fetch(&ring[warp][next % STAGES][1][lane], lower + (from + next) * 4, !ragged || from + next < whole);
        }
        fetched();
        uint4 p = ring[warp][i % STAGES][0][lane], q = ring[warp][i % STAGES][1][lane];
        mma(c, p.x, q.x, p.y, q.y, b.x, b.y);
        mma(c, p.z, q.z, p.w, q.w, b.z, b.w);
    }
    wait_all();
    sums[warp][group][2 * place] = c[0];
    sums[warp][group][2 * place + 1] = c[1];
    sums[warp][group + 8][2 * place] = c[2];
    sums[warp][group + 8][2 * place + 1] = c[3];
    __syncthreads();
    for (int i = threadIdx.x; i < 128; i += blockDim.x) {
        int result = i % 16, row = i / 16;
        if (row >= count || first + result > last) continue;
        float sum = 0;
        for (int each = 0; each < WARPS; ++each) sum += sums[each][result][row];
        y[(long long)(start + row) * results + first + result] = sum;
    }
}
#endif
extern "C" __global__ void skinny_gemm(const u16* weight, const u16* x, float* y, int results, int columns, int rows,
                                       const unsigned char* runs, int zeros) {
    multiply<false>(weight, x, y, results, columns, rows, runs, zeros);
}
extern "C" __global__ void skinny_gemm_ragged(const u16* weight, const u16* x, float* y, int results, int columns,
                                              int rows, const unsigned char* runs, int zeros) {
    multiply<true>(weight, x, y, results, columns, rows, runs, zeros);
}
"""


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


def source_of(half: str) -> str:
    """The kernel's source for a type of weights: "float16", "bfloat16"."""
    return "#define BFLOAT\n" + SOURCE if half == "bfloat16" else SOURCE


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

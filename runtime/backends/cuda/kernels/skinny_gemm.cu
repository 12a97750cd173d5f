// Defined from outside: WARPS, the warps that share the columns of a block; BFLOAT for weights in bfloat16.
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

// y = x·Wᵀ for few rows, over weights of 4, 8 or 16 bits that lie packed as the lanes of a warp read them.
// Defined from outside: BITS; PARTS, scales of a lane's columns in a chunk; RAGGED, whether the last chunk is not whole;
// WARPS of a block, FEW_WARPS of one for up to 8 rows, of which FEW_BLOCKS fit a multiprocessor; STAGES and X_STAGES, chunks of weights and of rows on their way; BFLOAT for weights and rows in
// bfloat16 (BITS 16).
//
// A tile is 16 results; a chunk of it, the columns of one pass of a warp, 1 KB of codes: lane (group, place) has its
// columns of results `group` and `group + 8`, 16 bytes each. Scales are two halves a lane (of these two results),
// zero points two of BITS bits. The order of columns inside an mma does not matter as long as both factors have the
// same, so a lane's columns are neighbours, and 4-bit codes are ordered so that masks give halves of neighbours.
#define MINE (128 / BITS)
#define CHUNK (4 * MINE)
#if BITS == 4
typedef u8 Zeros;
#else
typedef u16 Zeros;
#endif

#define RECORD (1024 + (BITS < 16 ? PARTS * (128 + 8 * BITS) : 0))  // bytes of a chunk: codes, scales, zero points

// One weight.
struct Packed {
    const u8* records;
    const float* bias;  // or null
    int results, columns;
    float factor;  // scales are as many times too small
};

// What joins the two halves of a product, such as a feed-forward block's gate and up: half results in half precision,
// f(first) · second. Packed results of a tile are then 8 of the first half and the 8 of the second that they meet.
#define NOTHING 0
#define SILU 1
#define GELU 2
#define GELU_TANH 3

// Where results go, and for which rows.
struct Result {
    void* to;  // floats, or halves of joined results
    int stride, pair;
    const u8* wants;
    int skip;
    bool runs;  // for one of the rows
};

static __device__ __forceinline__ float activated(float x, int pair) {
    if (pair == SILU) return x / (1.0f + expf(-x));
    if (pair == GELU) return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}

// Two sums of a tile: of packed results `result` and `result + 8`.
static __device__ __forceinline__ void put_pair(const Result& y, const Packed& w, int row, int result, float first,
                                                float second) {
    u16* to = (u16*)y.to + (long long)row * y.stride + result / 16 * 8 + result % 8;
    if (y.runs && runs_for(y.wants, row, y.skip)) *to = to_half(activated(first * w.factor, y.pair) * second * w.factor);
    else if (y.skip & ZEROS) *to = 0;
}

static __device__ __forceinline__ void put(const Result& y, const Packed& w, int row, int result, float sum) {
    float* to = (float*)y.to + (long long)row * y.stride + result;
    if (y.runs && runs_for(y.wants, row, y.skip)) *to = sum * w.factor + (w.bias ? w.bias[result] : 0);
    else if (y.skip & ZEROS) *to = 0;
}

#if defined(ON_CPU) && !defined(ON_WARPS)
static float value_of(const Packed& w, int result, int column) {
    int chunks = (w.columns + CHUNK - 1) / CHUNK, chunk = column / CHUNK, lane = result % 8 * 4 + column % CHUNK / MINE;
    int i = column % MINE, high = result % 16 / 8;
    const u8* record = w.records + (result / 16 * (long long)chunks + chunk) * RECORD;
    const u32* mine = (const u32*)(record + (high * 32 + lane) * 16);
#if BITS == 16
    return from_half(mine[i / 2] >> 16 * (i % 2) & 65535);
#else
    static const int order[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    int code = BITS == 4 ? mine[i / 8] >> 4 * order[i % 8] & 15 : mine[i / 4] >> 8 * (i % 4) & 255;
    int at = i * PARTS / MINE * 32 + lane;
    u32 scales = ((const u32*)(record + 1024))[at];
    int zero = ((const Zeros*)(record + 1024 + PARTS * 128))[at] >> BITS * high & ((1 << BITS) - 1);
    return from_half(to_half((code - zero) * from_half(scales >> 16 * high & 65535)));
#endif
}
template <int TILES>
static void multiply(const Packed& w, const u16* x, const Result& y, int rows, float*, int*, int) {
    int tiles = (w.results + 15) / 16;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x)
        for (int i = threadIdx.x; i < 16 * rows; i += blockDim.x) {
            int result = tile * 16 + i % 16, row = i / 16;
            if (result >= w.results) continue;
            float sum = 0, second = 0;
            if (y.pair && i % 16 >= 8) continue;
            for (int k = 0; k < w.columns; ++k) {
                float each = from_half(x[(long long)row * w.columns + k]);
                sum += value_of(w, result, k) * each;
                if (y.pair) second += value_of(w, result + 8, k) * each;
            }
            if (y.pair) put_pair(y, w, row, result, sum, second);
            else put(y, w, row, result, sum);
        }
}
#else
#ifndef ON_CPU
static __device__ __forceinline__ uint4 stream16(const uint4* from) {
    uint4 x;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(from));
    return x;
}
// 16 bytes into shared memory, or as many zeros.
static __device__ __forceinline__ void fetch(void* to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"((u32)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(there ? 16 : 0));
}
static __device__ __forceinline__ void fetch_if(void* to, const void* from, bool there) {
    asm volatile("{ .reg .pred p; setp.ne.s32 p, %2, 0; @p cp.async.cg.shared.global.L2::256B [%0], [%1], 16; }" ::"r"(
                     (u32)__cvta_generic_to_shared(to)),
                 "l"(from), "r"((int)there));
}
static __device__ __forceinline__ void fetched() { asm volatile("cp.async.commit_group;"); }
// Wait until all but the newest groups of copies are there.
#define wait_but(N) asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory")
static __device__ __forceinline__ void wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }
static __device__ __forceinline__ u32 stream4(const u32* from) {
    u32 x;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(x) : "l"(from));
    return x;
}
static __device__ __forceinline__ Zeros stream_zeros(const Zeros* from) {
    u16 x;
#if BITS == 4
    asm volatile("ld.global.nc.L1::no_allocate.u8 %0, [%1];" : "=h"(x) : "l"(from));
#else
    asm volatile("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=h"(x) : "l"(from));
#endif
    return (Zeros)x;
}
static __device__ __forceinline__ u32 sub2(u32 a, u32 b) {
    u32 y;
    asm("sub.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
static __device__ __forceinline__ u32 mul2(u32 a, u32 b) {
    u32 y;
    asm("mul.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
static __device__ __forceinline__ u32 fma2(u32 a, u32 b, u32 c) {
    u32 y;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
    return y;
}
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

// What a lane has of a chunk.
struct Piece {
    uint4 low, high;
    u32 scales[PARTS];
    u32 zeros[PARTS];
};

static __device__ __forceinline__ void load(Piece& piece, const u8* record, int lane) {
    piece.low = stream16((const uint4*)record + lane);
    piece.high = stream16((const uint4*)record + 32 + lane);
#if BITS < 16
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
        piece.scales[part] = stream4((const u32*)(record + 1024) + part * 32 + lane);
        piece.zeros[part] = stream_zeros((const Zeros*)(record + 1024 + PARTS * 128) + part * 32 + lane);
    }
#endif
}

// Numbers that stay in registers: the compiler would write each anew at every use, a fifth of the loop.
struct Masks {
    u32 near, far, sixteenth, magic;
};
static __device__ __forceinline__ u32 opaque(u32 x) { return __shfl_sync(0xffffffffu, threadIdx.x % 32 ? 0u : x, 0); }
static __device__ __forceinline__ Masks masks() {
    return Masks{opaque(0x000f000fu), opaque(0x00f000f0u), opaque(0x2c002c00u), opaque(0x64006400u)};
}

// Scale and zero point of one result's columns, each twice in a word.
struct Grid {
    u32 scale, near, far;  // 1024 + zero point, and -(64 + zero point)
};
static __device__ __forceinline__ Grid grid_of(u32 scales, u32 zeros, int high) {
    u32 zero = (high ? zeros >> BITS : zeros & ((1 << BITS) - 1)) * 0x00010001u;
    return Grid{__byte_perm(scales, 0, high ? 0x3232 : 0x1010), 0x64006400u + zero, 0xd400d400u + (zero << 4)};
}

// Eight neighbouring columns of one result as four pairs of halves.
static __device__ __forceinline__ void widen(u32* pairs, const u32* codes, const Grid& g, const Masks& m) {
#if BITS == 4
    // 1024 + code, and 1024 + 16 · code, are halves whose last bits are the code; both differences are exact.
    u32 q = codes[0], r = q >> 8;
    pairs[0] = mul2(sub2(q & m.near | m.magic, g.near), g.scale);
    pairs[1] = mul2(fma2(q & m.far | m.magic, m.sixteenth, g.far), g.scale);
    pairs[2] = mul2(sub2(r & m.near | m.magic, g.near), g.scale);
    pairs[3] = mul2(fma2(r & m.far | m.magic, m.sixteenth, g.far), g.scale);
#elif BITS == 8
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        pairs[2 * i] = mul2(sub2(__byte_perm(codes[i], m.magic, 0x5150), g.near), g.scale);
        pairs[2 * i + 1] = mul2(sub2(__byte_perm(codes[i], m.magic, 0x5352), g.near), g.scale);
    }
#else
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = codes[i];
#endif
}

// A lane's columns of a chunk of a row, if the row is there; columns past the end are zeros.
static __device__ __forceinline__ void load_row(uint4* to, const u16* from, int left, bool there) {
#pragma unroll
    for (int j = 0; j < MINE / 8; ++j) {
        if (RAGGED) to[j] = uint4{0, 0, 0, 0};
        if (there && (!RAGGED || j * 8 < left)) to[j] = ((const uint4*)from)[j];
    }
}

// Up to eight rows. A block gives 16 results after another, as many blocks as run at once sharing all; each of its warps
// sums every FEW_WARPS-th chunk, so that a block reads what lies together. Records are copied STAGES ahead, past the end of
// a tile too, and the first of them while the kernel before still runs.
static __device__ __forceinline__ void multiply_few(const Packed& w, const u16* x, const Result& y, int rows) {
    extern __shared__ __align__(16) u8 slots[];
    __shared__ float sums[2][FEW_WARPS][16][9];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, place = lane % 4;
    int tiles = (w.results + 15) / 16, chunks = (w.columns + CHUNK - 1) / CHUNK;
    int count = chunks > warp ? (chunks - warp + FEW_WARPS - 1) / FEW_WARPS : 0;
    if (!y.runs) {
        after_previous();
        for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x)
            for (int i = threadIdx.x; i < 16 * rows; i += blockDim.x) {
                if (tile * 16 + i % 16 >= w.results) continue;
                if (!y.pair) put(y, w, i / 16, tile * 16 + i % 16, 0);
                else if (i % 16 < 8) put_pair(y, w, i / 16, tile * 16 + i % 16, 0, 0);
            }
        return;
    }
    u8* ring = slots + warp * STAGES * RECORD;
    const u8* next = w.records + ((long long)blockIdx.x * chunks + warp) * RECORD + lane * 16;  // what is copied next
    long long to_tile = ((long long)gridDim.x * chunks - count * FEW_WARPS) * RECORD;
    int left = count, owed = count * ((tiles - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x);
    int into = 0;
#define FETCH_NEXT()                                                                                                   \
    {                                                                                                                  \
        u8* slot = ring + into * RECORD + lane * 16;                                                                   \
        fetch_if(slot, next, owed > 0);                                                                                \
        fetch_if(slot + 512, next + 512, owed > 0);                                                                    \
        if (BITS < 16) fetch_if(slot + 1024, next + 1024, owed > 0 && lane < (RECORD - 1024) / 16);                    \
        fetched();                                                                                                     \
        --owed;                                                                                                        \
        next += FEW_WARPS * RECORD;                                                                                        \
        if (--left == 0) { next += to_tile; left = count; }                                                            \
        into = into == STAGES - 1 ? 0 : into + 1;                                                                      \
    }
#pragma unroll
    for (int i = 0; i < STAGES - 1; ++i) FETCH_NEXT();
    after_previous();
    const u16* mine = x + (long long)group * w.columns + warp * CHUNK + place * MINE;
    bool there = group < rows;
    uint4 ahead[MINE / 8];
#pragma unroll
    for (int j = 0; j < MINE / 8; ++j) ahead[j] = uint4{0, 0, 0, 0};
    if (count) load_row(ahead, mine, w.columns - warp * CHUNK - place * MINE, there);
    float c[2][4] = {};
    Masks m = masks();
    int turn = 0, stage = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        for (int done = 0; done < count; ++done) {
            wait_but(STAGES - 2);
            __syncwarp();
            const u8* slot = ring + stage * RECORD;
            stage = stage == STAGES - 1 ? 0 : stage + 1;
            uint4 low4 = ((const uint4*)slot)[lane], high4 = ((const uint4*)slot)[32 + lane];
            u32 scales[PARTS] = {}, zeros[PARTS] = {};
#if BITS < 16
#pragma unroll
            for (int part = 0; part < PARTS; ++part) {
                scales[part] = ((const u32*)(slot + 1024))[part * 32 + lane];
                zeros[part] = ((const Zeros*)(slot + 1024 + PARTS * 128))[part * 32 + lane];
            }
#endif
            FETCH_NEXT();
            uint4 given[MINE / 8];
#pragma unroll
            for (int j = 0; j < MINE / 8; ++j) given[j] = ahead[j];
            int later = done + 1 < count ? (done + 1) * FEW_WARPS * CHUNK : 0;
            load_row(ahead, mine + later, w.columns - later - warp * CHUNK - place * MINE, there);
            const u32* low = (const u32*)&low4;
            const u32* high = (const u32*)&high4;
#pragma unroll
            for (int j = 0; j < MINE / 8; ++j) {
                u32 p[4], q[4];
                const int part = j * PARTS * 8 / MINE;
                widen(p, low + j * BITS / 4, grid_of(scales[part], zeros[part], 0), m);
                widen(q, high + j * BITS / 4, grid_of(scales[part], zeros[part], 1), m);
                mma(c[0], p[0], q[0], p[1], q[1], given[j].x, given[j].y);
                mma(c[1], p[2], q[2], p[3], q[3], given[j].z, given[j].w);
            }
        }
        float(*into_sums)[9] = sums[turn][warp];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            into_sums[group + i / 2 * 8][2 * place + i % 2] = c[0][i] + c[1][i];
            c[0][i] = c[1][i] = 0;
        }
        __syncthreads();  // one for a tile: the next one's sums lie in the other half
        for (int i = threadIdx.x; i < 16 * rows; i += blockDim.x) {
            int result = tile * 16 + i % 16, row = i / 16;
            if (result >= w.results || (y.pair && i % 16 >= 8)) continue;
            float sum = 0, second = 0;
#pragma unroll
            for (int each = 0; each < FEW_WARPS; ++each) {
                sum += sums[turn][each][i % 16][row];
                if (y.pair) second += sums[turn][each][i % 16 + 8][row];
            }
            if (y.pair) put_pair(y, w, row, result, sum, second);
            else put(y, w, row, result, sum);
        }
        turn ^= 1;
    }
    wait_all();
}

// Columns of a chunk in shared memory: each place's apart, so that a quarter of a warp reads all banks once.
#define AHEAD 4        // chunks of weights on their way to a warp
#define SUB (BITS / 4)  // chunks between two barriers: 128 columns
#define PLACE (MINE + (BITS == 16 ? 0 : 8))

static __device__ __forceinline__ void fetch_rows(u16* to, const Packed& w, const u16* x, int rows, int all, int chunk) {
    for (int i = threadIdx.x; i < all * (CHUNK / 8); i += blockDim.x) {
        int row = i / (CHUNK / 8), eight = i % (CHUNK / 8), column = chunk * CHUNK + eight * 8;
        bool there = row < rows && column < w.columns;
        u16* into = to + row * 4 * PLACE + eight * 8 / MINE * PLACE + eight * 8 % MINE;
        fetch(into, there ? x + (long long)row * w.columns + column : x, there);
    }
}

// The sums of all splits of a block's results: a warp has a row at a time, a lane four results of it. All rows of a split
// are read at once, and some splits, since nothing but waiting for them takes time here.
template <int TILES>
static __device__ __forceinline__ void sum_parts(const Packed& w, const Result& y, int rows, const float* parts,
                                                 int splits, int part) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, result = part * WARPS * 16 + lane * 4;
    long long size = (long long)rows * w.results;
    bool whole = w.results % 4 == 0;
    for (int half = 0; half < WARPS / 8; ++half, result += 128) {
        float sums[TILES][4] = {};
#pragma unroll 4
        for (int split = 0; split < splits; ++split)
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                int row = t * 8 + warp % 8;
                const float* from = parts + split * size + (long long)row * w.results + result;
                if (row >= rows) continue;
                if (whole && result < w.results) {
                    uint4 four = *(const uint4*)from;
                    sums[t][0] += __uint_as_float(four.x);
                    sums[t][1] += __uint_as_float(four.y);
                    sums[t][2] += __uint_as_float(four.z);
                    sums[t][3] += __uint_as_float(four.w);
                } else {
                    for (int i = 0; i < 4 && result + i < w.results; ++i) sums[t][i] += from[i];
                }
            }
#pragma unroll
        for (int t = 0; t < TILES; ++t)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                int row = t * 8 + warp % 8;
                float second = y.pair ? __shfl_down_sync(0xffffffffu, sums[t][i], 2) : 0;
                if (row >= rows || result + i >= w.results) continue;
                if (!y.pair) put(y, w, row, result + i, sums[t][i]);
                else if (lane % 4 < 2) put_pair(y, w, row, result + i, sums[t][i], second);
            }
    }
}

// Up to 8 · TILES rows. A block gives a tile for each of its warps, over one of `splits` shares of the chunks; rows come
// through shared memory. Of the blocks with a share of the same results the last to end sums all, in their order.
template <int TILES>
static __device__ __forceinline__ void multiply_more(const Packed& w, const u16* x, const Result& y, int rows,
                                                     float* parts, int* arrived, int splits) {
    extern __shared__ __align__(16) u8 slots[];
    u16* given = (u16*)slots;  // X_STAGES times SUB chunks of the rows
    const int each_x = 8 * TILES * 4 * PLACE;
    __shared__ int is_last;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, place = lane % 4;
    int split = blockIdx.x % splits, part = blockIdx.x / splits, tile = part * WARPS + warp;
    int chunks = (w.columns + CHUNK - 1) / CHUNK, share = (chunks + splits - 1) / splits;
    int from = split * share, to = from + share < chunks ? from + share : chunks;
    bool mine = y.runs && tile * 16 < w.results;
    Piece ring[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i)
        if (mine && from + i < to) load(ring[i], w.records + ((long long)tile * chunks + from + i) * RECORD, lane);
    after_previous();
    for (int i = 0; i < (X_STAGES - 1) * SUB; ++i) {
        if (y.runs && from + i < to) fetch_rows(given + i * each_x, w, x, rows, 8 * TILES, from + i);
        if (i % SUB == SUB - 1) fetched();
    }
    float c[TILES][4];
    Masks m = masks();
#pragma unroll
    for (int t = 0; t < TILES; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i) c[t][i] = 0;
    for (int base = from; y.runs && base < to; base += AHEAD) {
#pragma unroll
        for (int stage = 0; stage < AHEAD; ++stage) {
            int at = base + stage;
            if (at >= to) break;
            if (stage % SUB == 0) {
                wait_but(X_STAGES - 2);
                __syncthreads();
#pragma unroll
                for (int i = 0; i < SUB; ++i) {
                    int next = at - from + (X_STAGES - 1) * SUB + i;
                    u16* into = given + next % (X_STAGES * SUB) * each_x;
                    if (from + next < to) fetch_rows(into, w, x, rows, 8 * TILES, from + next);
                }
                fetched();
            }
            if (!mine) continue;
            Piece now = ring[stage];
            if (at + AHEAD < to) load(ring[stage], w.records + ((long long)tile * chunks + at + AHEAD) * RECORD, lane);
            const u32* low = (const u32*)&now.low;
            const u32* high = (const u32*)&now.high;
            const u16* here = given + (at - from) % (X_STAGES * SUB) * each_x + group * 4 * PLACE + place * PLACE;
#pragma unroll
            for (int j = 0; j < MINE / 8; ++j) {
                u32 p[4], q[4];
                const int part = j * PARTS * 8 / MINE;
                widen(p, low + j * BITS / 4, grid_of(now.scales[part], now.zeros[part], 0), m);
                widen(q, high + j * BITS / 4, grid_of(now.scales[part], now.zeros[part], 1), m);
#pragma unroll
                for (int t = 0; t < TILES; ++t) {
                    uint4 b = *(const uint4*)(here + t * 8 * 4 * PLACE + j * 8);
                    mma(c[t], p[0], q[0], p[1], q[1], b.x, b.y);
                    mma(c[t], p[2], q[2], p[3], q[3], b.z, b.w);
                }
            }
        }
    }
    long long size = (long long)rows * w.results;
#pragma unroll
    for (int t = 0; t < TILES; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            int result = tile * 16 + group + i / 2 * 8, row = t * 8 + 2 * place + i % 2;
            if (result >= w.results || row >= rows) continue;
            if (splits > 1) parts[split * size + (long long)row * w.results + result] = c[t][i];
            else if (!y.pair) put(y, w, row, result, c[t][i]);
            else if (i < 2) put_pair(y, w, row, result, c[t][i], c[t][i + 2]);
        }
    if (splits == 1) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(arrived + part, 1) == splits - 1;
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    sum_parts<TILES>(w, y, rows, parts, splits, part);
    if (threadIdx.x == 0) arrived[part] = 0;
}
template <int TILES>
static __device__ __forceinline__ void multiply(const Packed& w, const u16* x, const Result& y, int rows,
                                                float* parts, int* arrived, int splits) {
    if (TILES == 1) multiply_few(w, x, y, rows);
    else multiply_more<TILES>(w, x, y, rows, parts, arrived, splits);
}
#endif

// Grid: for up to 8 rows as many blocks as run at once, and as many times eight rows; else one for each WARPS tiles and
// split. `wants` and `skip` are as in common.cu. `parts` is float [splits][rows][results], `arrived` int [tiles / WARPS],
// zeros before and after.
#define PACKED_GEMM(NAME, TILES, MOST, BLOCKS)                                                                         \
    extern "C" __global__ void __launch_bounds__(32 * MOST, BLOCKS)                                                    \
        NAME(const u8* records, const float* bias, float factor, const u16* x, void* y, int results, int columns,      \
             int stride, int pair, int rows, const u8* wants, int skip, float* parts, int* arrived, int splits) {      \
        Packed w = {records, bias, results, columns, factor};                                                          \
        if (TILES == 1) {                                                                                              \
            int first = blockIdx.y * 8;                                                                                \
            x += (long long)first * columns;                                                                           \
            y = (u8*)y + (long long)first * stride * (pair ? 2 : 4);                                                   \
            wants = wants ? wants + first : wants;                                                                     \
            rows = rows - first < 8 ? rows - first : 8;                                                                \
        }                                                                                                              \
        if (wants && (skip & JUST_DECIDED)) after_previous();                                                          \
        Result to = {y, stride, pair, wants, skip, runs_for_any(wants, rows, skip)};                                   \
        if (!to.runs && !(skip & ZEROS)) {                                                                             \
            after_previous();                                                                                          \
            return;                                                                                                    \
        }                                                                                                              \
        multiply<TILES>(w, x, to, rows, parts, arrived, splits);                                                       \
    }
PACKED_GEMM(packed_gemm_8, 1, FEW_WARPS, FEW_BLOCKS)
PACKED_GEMM(packed_gemm_16, 2, WARPS, 2)
PACKED_GEMM(packed_gemm_32, 4, WARPS, 2)
PACKED_GEMM(packed_gemm_64, 8, WARPS, 1)

// Codes of ONNX Runtime's MatMulNBits, [results][columns] in rows of `row_bytes` bytes, or halves, go into records.
extern "C" __global__ void pack_codes(const u8* from, u8* to, int results, int columns, int row_bytes, int pair) {
    long long chunks = (columns + CHUNK - 1) / CHUNK, words = (results + 15) / 16 * chunks * 256;
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < words; i += (long long)gridDim.x * blockDim.x) {
        int word = i % 4, lane = i / 4 % 32, high = i / 128 % 2;
        long long chunk = i / 256 % chunks, tile = i / 256 / chunks;
        int result = tile * 16 + high * 8 + lane / 4, column = chunk * CHUNK + lane % 4 * MINE + word * (32 / BITS);
        u32 value = 0;
        for (int k = 0; k < 32 / BITS; ++k) {
            if (result >= results || column + k >= columns) continue;
            const u8* row = from + source_of(result, results, pair) * row_bytes;
#if BITS == 4
            u32 code = row[(column + k) / 2] >> 4 * ((column + k) % 2) & 15;
            value |= code << 4 * (k / 2 + k % 2 * 4);
#elif BITS == 8
            value |= (u32)row[column + k] << 8 * k;
#else
            value |= (u32)((const u16*)row)[column + k] << 16 * k;
#endif
        }
        ((u32*)(to + i / 256 * RECORD))[i % 256] = value;
    }
}

#if BITS < 16
// Scales, float [results][blocks], and zero points, [results][row_zeros] bytes of codes; null for the middle of a code.
extern "C" __global__ void pack_scales(const float* scales, const u8* points, u8* to, int results, int columns, int block,
                                       float factor, int row_zeros, int pair) {
    long long chunks = (columns + CHUNK - 1) / CHUNK, all = (results + 15) / 16 * chunks * PARTS * 32;
    int blocks = (columns + block - 1) / block;
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < all; i += (long long)gridDim.x * blockDim.x) {
        int lane = i % 32, part = i / 32 % PARTS;
        long long chunk = i / 32 / PARTS % chunks, tile = i / 32 / PARTS / chunks;
        int column = chunk * CHUNK + lane % 4 * MINE + part * (MINE / PARTS), at = column / block;
        u32 both = 0, zero = 0;
        for (int high = 0; high < 2; ++high) {
            int result = tile * 16 + high * 8 + lane / 4;
            if (result >= results || column >= columns) continue;
            long long source = source_of(result, results, pair);
            both |= (u32)to_half(scales[source * blocks + at] / factor) << 16 * high;
            u32 point = 1 << (BITS - 1);
            if (points)
                point = points[source * row_zeros + at * BITS / 8] >> BITS * (at % (8 / BITS)) & ((1 << BITS) - 1);
            zero |= point << BITS * high;
        }
        u8* record = to + (i / 32 / PARTS) * RECORD + 1024;
        ((u32*)record)[i % (32 * PARTS)] = both;
        ((Zeros*)(record + PARTS * 128))[i % (32 * PARTS)] = (Zeros)zero;
    }
}
#endif

// Attention of a step: rows of a few tokens each against the KV cache, where the step's own entries lie already.
// Defined from outside: WIDTH of a head; SHARE, lanes that share a head's numbers; GROUP, query heads of a block, all
// of one key head.
#define MINE (WIDTH / SHARE)  // numbers of a lane, whole pieces of 8
#define AT_ONCE (128 / SHARE)  // positions that the block's four warps read at once
#define TILE (SHARE == 1 ? 128 : WIDTH > 128 ? 32 : 64)  // positions between two corrections of the softmax
#define PASSES (TILE / AT_ONCE)

struct State { int count, warmup, off, step; };

// Where a step's queries, keys and values come from, and the tables of their rotation: number i of a head is paired
// with i + half; what lies behind both halves stays.
struct Fresh {
    const float *query, *key, *value;
    int row_query, row_key, row_value;
    const float *cosine, *sine;
    int half;
};

static __device__ __forceinline__ float rotated(const float* from, int i, int position, const Fresh& f) {
    float x = from[i];
    if (i >= 2 * f.half) return x;
    int pair = i < f.half ? i : i - f.half;
    float c = f.cosine[(long long)position * f.half + pair], s = f.sine[(long long)position * f.half + pair];
    return i < f.half ? x * c - from[i + f.half] * s : x * c + from[pair] * s;
}

// For rows of several tokens: rotate, and write keys and values into the cache, where `attend` finds them. A block is a
// head of a row: first those of the queries, then of keys, then of values.
extern "C" __global__ void write_rotated(const float* query, const float* key, const float* value, int row_query,
                                         int row_key, int row_value, const float* cosine, const float* sine, int half,
                                         const int* positions, const State* state, int tokens, u16* queries, u16* keys,
                                         u16* values, int heads, int kv_heads, int max_tokens) {
    after_previous();
    Fresh f = {query, key, value, row_query, row_key, row_value, cosine, sine, half};
    int head = blockIdx.x, row = blockIdx.y, position = positions[row];
    long long slot = row / tokens;
    bool there = slot < state->count && position >= 0 && position < max_tokens;
    for (int i = threadIdx.x; i < WIDTH; i += blockDim.x) {
        int kv = head - heads;
        if (head < heads)
            queries[((long long)row * heads + head) * WIDTH + i] =
                to_half(rotated(query + (long long)row * row_query + head * WIDTH, i, position, f));
        else if (there && kv < kv_heads)
            keys[((slot * kv_heads + kv) * max_tokens + position) * WIDTH + i] =
                to_half(rotated(key + (long long)row * row_key + kv * WIDTH, i, position, f));
        else if (there)
            values[((slot * kv_heads + kv - kv_heads) * max_tokens + position) * WIDTH + i] =
                to_half(value[(long long)row * row_value + (kv - kv_heads) * WIDTH + i]);
    }
}

// What a step of attention works on.
struct Work {
    const u16* query;  // rotated, if the step's keys and values are in the cache; else null
    Fresh fresh;       // otherwise
    u16* keys;
    u16* values;
    u16* result;
    int row, head, count, kv_head, first, last;  // query heads; positions from `first` to before `last`
    long long base;                              // of the key head in the cache
    float scale, softcap;
    int heads, writes;                           // whether the fresh keys and values go into the cache
};

// A number of a rotated query.
static __device__ __forceinline__ u16 query_of(const Work& w, int head, int i) {
    if (w.query) return w.query[((long long)w.row * w.heads + head) * WIDTH + i];
    return to_half(rotated(w.fresh.query + (long long)w.row * w.fresh.row_query + head * WIDTH, i, w.last - 1, w.fresh));
}

// The fresh key and value of the row, in half precision; a cache keeps them too.
static __device__ __forceinline__ void read_fresh(const Work& w, u16* key, u16* value, bool keep) {
    const Fresh& f = w.fresh;
    for (int i = threadIdx.x; i < WIDTH; i += blockDim.x) {
        key[i] = to_half(rotated(f.key + (long long)w.row * f.row_key + w.kv_head * WIDTH, i, w.last - 1, f));
        value[i] = to_half(f.value[(long long)w.row * f.row_value + w.kv_head * WIDTH + i]);
        if (!keep) continue;
        w.keys[w.base + (long long)(w.last - 1) * WIDTH + i] = key[i];
        w.values[w.base + (long long)(w.last - 1) * WIDTH + i] = value[i];
    }
}

static __device__ __forceinline__ float capped(float score, float softcap) {
    return softcap > 0 ? softcap * tanhf(score / softcap) : score;
}

#if defined(ON_CPU) && !defined(ON_WARPS)
// The same sums, by any number of threads; one split does all.
static void attend_part(const Work& w, float* parts, int* arrived, int splits, int split) {
    if (split) return;
    __shared__ u16 key[WIDTH], value[WIDTH];
    if (!w.query) read_fresh(w, key, value, w.writes);
    __syncthreads();
    for (int i = threadIdx.x; i < w.count; i += blockDim.x) {
        float top = -3e38f, sum = 0, result[WIDTH] = {};
        for (int round = 0; round < 2; ++round)
            for (int at = w.first; at < w.last; ++at) {
                bool fresh = !w.query && at == w.last - 1;
                const u16* k = fresh ? key : w.keys + w.base + (long long)at * WIDTH;
                const u16* v = fresh ? value : w.values + w.base + (long long)at * WIDTH;
                float score = 0;
                for (int d = 0; d < WIDTH; ++d) score += from_half(query_of(w, w.head + i, d)) * from_half(k[d]);
                score = capped(score * w.scale, w.softcap);
                if (round == 0) top = score > top ? score : top;
                if (round == 0) continue;
                float weight = expf(score - top);
                sum += weight;
                for (int d = 0; d < WIDTH; ++d) result[d] += weight * from_half(v[d]);
            }
        for (int d = 0; d < WIDTH; ++d)
            w.result[((long long)w.row * w.heads + w.head + i) * WIDTH + d] = to_half(result[d] / sum);
    }
}
#else
static __device__ __forceinline__ void widen8(float* to, uint4 raw) {
    u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        to[2 * i] = from_half((u16)(words[i] & 0xffffu));
        to[2 * i + 1] = from_half((u16)(words[i] >> 16));
    }
}

// The keys and values of a tile that a lane reads; zeros past the end, and in the place of the fresh one.
static __device__ __forceinline__ void fetch_tile(uint4 (*keys)[MINE / 8], uint4 (*values)[MINE / 8], const Work& w,
                                                  int start, int to, int which, int mine) {
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass)
#pragma unroll
        for (int i = 0; i < MINE / 8; ++i) {
            int at = start + pass * AT_ONCE + which;
            bool there = at < to && (w.query || at < w.last - 1);
            long long place = w.base + (long long)at * WIDTH + mine + i * 8;
            keys[pass][i] = values[pass][i] = uint4{0, 0, 0, 0};
            if (!there) continue;
            keys[pass][i] = *(const uint4*)(w.keys + place);
            values[pass][i] = *(const uint4*)(w.values + place);
        }
}

// A block does some positions of one row for the query heads that share a key head. Several lanes share a position; a
// tile's keys and values are fetched together. The block that ends last joins what all of a row's blocks left in
// `parts`, in their order.
static __device__ __forceinline__ void attend_part(const Work& w, float* parts, int* arrived, int splits, int split) {
    __shared__ float scores[GROUP][TILE];
    __shared__ float joined[4][GROUP][WIDTH];
    __shared__ __align__(16) u16 queries[GROUP][WIDTH], key[WIDTH], value[WIDTH];
    __shared__ float top[GROUP], total[GROUP], shrink[GROUP];
    __shared__ int is_last;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, mine = lane % SHARE * MINE, which = threadIdx.x / SHARE;
    int length = w.last - w.first, size = (length + splits - 1) / splits;
    size = size < TILE ? TILE : (size + TILE - 1) / TILE * TILE;
    int used = (length + size - 1) / size;
    if (split >= used) {
        if (!w.query) after_previous();
        return;
    }
    int from = w.first + split * size, to = from + size < w.last ? from + size : w.last;
    // Without rotated queries all positions but the fresh one are an earlier step's, and were written long ago.
    uint4 keys[PASSES][MINE / 8], values[PASSES][MINE / 8];
    if (!w.query) fetch_tile(keys, values, w, from, to, which, mine);
    if (!w.query) after_previous();
    if (!w.query && to == w.last) read_fresh(w, key, value, w.writes);
    for (int i = threadIdx.x; i < GROUP * WIDTH; i += blockDim.x)
        queries[i / WIDTH][i % WIDTH] = query_of(w, i / WIDTH < w.count ? w.head + i / WIDTH : w.head, i % WIDTH);
    for (int g = threadIdx.x; g < GROUP; g += blockDim.x) { top[g] = -3e38f; total[g] = 0; }
    __syncthreads();
    float q[GROUP][MINE], sum[GROUP][MINE];
#pragma unroll
    for (int g = 0; g < GROUP; ++g)
#pragma unroll
        for (int i = 0; i < MINE; i += 8) {
            widen8(q[g] + i, *(const uint4*)&queries[g][mine + i]);
#pragma unroll
            for (int k = 0; k < 8; ++k) sum[g][i + k] = 0;
        }
    for (int start = from; start < to; start += TILE) {
        int here = to - start < TILE ? to - start : TILE;
        if (w.query || start > from) fetch_tile(keys, values, w, start, to, which, mine);
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass)
#pragma unroll
            for (int i = 0; i < MINE / 8; ++i)
                if (!w.query && start + pass * AT_ONCE + which == w.last - 1) {
                    keys[pass][i] = *(const uint4*)(key + mine + i * 8);
                    values[pass][i] = *(const uint4*)(value + mine + i * 8);
                }
        __syncthreads();
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) {
            int at = pass * AT_ONCE + which;
            float dot[GROUP];
#pragma unroll
            for (int g = 0; g < GROUP; ++g) dot[g] = 0;
#pragma unroll
            for (int i = 0; i < MINE / 8; ++i) {
                float k[8];
                widen8(k, keys[pass][i]);
#pragma unroll
                for (int g = 0; g < GROUP; ++g)
#pragma unroll
                    for (int j = 0; j < 8; ++j) dot[g] += q[g][i * 8 + j] * k[j];
            }
#pragma unroll
            for (int g = 0; g < GROUP; ++g)
#pragma unroll
                for (int away = SHARE / 2; away; away /= 2) dot[g] += __shfl_xor_sync(0xffffffffu, dot[g], away);
            if (lane % SHARE == 0)
#pragma unroll
                for (int g = 0; g < GROUP; ++g)
                    scores[g][at] = at < here ? capped(dot[g] * w.scale, w.softcap) : -3e38f;
        }
        __syncthreads();
        for (int g = warp; g < GROUP; g += 4) {
            float most = top[g], before = most, all = 0;
            for (int i = lane; i < TILE; i += 32) most = scores[g][i] > most ? scores[g][i] : most;
#pragma unroll
            for (int away = 16; away; away /= 2) {
                float other = __shfl_xor_sync(0xffffffffu, most, away);
                most = other > most ? other : most;
            }
            for (int i = lane; i < TILE; i += 32) {
                scores[g][i] = i < here ? expf(scores[g][i] - most) : 0;
                all += scores[g][i];
            }
            all = lane_sum(all);
            if (lane == 0) {
                shrink[g] = expf(before - most);
                total[g] = total[g] * shrink[g] + all;
                top[g] = most;
            }
        }
        __syncthreads();
#pragma unroll
        for (int g = 0; g < GROUP; ++g)
#pragma unroll
            for (int i = 0; i < MINE; ++i) sum[g][i] *= shrink[g];
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass)
#pragma unroll
            for (int i = 0; i < MINE / 8; ++i) {
                float v[8];
                widen8(v, values[pass][i]);
#pragma unroll
                for (int g = 0; g < GROUP; ++g) {
                    float weight = scores[g][pass * AT_ONCE + which];
#pragma unroll
                    for (int j = 0; j < 8; ++j) sum[g][i * 8 + j] += weight * v[j];
                }
            }
    }
#pragma unroll
    for (int g = 0; g < GROUP; ++g)
#pragma unroll
        for (int i = 0; i < MINE; ++i) {
            float x = sum[g][i];
#pragma unroll
            for (int away = SHARE; away < 32; away *= 2) x += __shfl_xor_sync(0xffffffffu, x, away);
            if (lane < SHARE) joined[warp][g][mine + i] = x;
        }
    __syncthreads();
    long long each = WIDTH + 2, of_row = (long long)w.row * w.heads + w.head;
    for (int i = threadIdx.x; i < w.count * WIDTH; i += blockDim.x) {
        int g = i / WIDTH, d = i % WIDTH;
        float x = joined[0][g][d] + joined[1][g][d] + joined[2][g][d] + joined[3][g][d];
        if (used == 1) w.result[(of_row + g) * WIDTH + d] = to_half(x / total[g]);
        else parts[((of_row + g) * splits + split) * each + d] = x;
    }
    if (used == 1) return;
    for (int g = threadIdx.x; g < w.count; g += blockDim.x) {
        parts[((of_row + g) * splits + split) * each + WIDTH] = top[g];
        parts[((of_row + g) * splits + split) * each + WIDTH + 1] = total[g];
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(arrived, 1) == used - 1;
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    for (int i = threadIdx.x; i < w.count * WIDTH; i += blockDim.x) {
        int g = i / WIDTH, d = i % WIDTH;
        const float* all = parts + (of_row + g) * splits * each;
        float most = -3e38f, x = 0, sums = 0;
        for (int s = 0; s < used; ++s) most = all[s * each + WIDTH] > most ? all[s * each + WIDTH] : most;
        for (int s = 0; s < used; ++s) {
            float weight = expf(all[s * each + WIDTH] - most);
            x += weight * all[s * each + d];
            sums += weight * all[s * each + WIDTH + 1];
        }
        w.result[(of_row + g) * WIDTH + d] = to_half(x / sums);
    }
    if (threadIdx.x == 0) *arrived = 0;
}
#endif

// Grid: groups of query heads, splits of the positions, rows. `parts` is float [rows][heads][splits][WIDTH + 2],
// `arrived` int [rows][groups], zeros before and after. Without `rotated` rows have one token, and its key and value
// are taken from where the GEMM left them.
extern "C" __global__ void attend(const u16* rotated, const float* query, const float* key, const float* value,
                                  int row_query, int row_key, int row_value, const float* cosine, const float* sine,
                                  int half, const State* state, u16* keys, u16* values, u16* result, float* parts,
                                  int* arrived, const int* positions, int tokens, int heads, int kv_heads,
                                  int max_tokens, int window, float scale, float softcap) {
    if (rotated) after_previous();  // else what is read first is older than the kernel before: see `attend_part`
    int shared = heads / kv_heads, groups = (shared + GROUP - 1) / GROUP, row = blockIdx.z, slot = row / tokens;
    int kv_head = blockIdx.x / groups, part = blockIdx.x % groups, left = shared - part * GROUP;
    int position = positions[row], last = (position < max_tokens ? position : max_tokens - 1) + 1;
    int first = window > 0 && last > window ? last - window : 0;
    Fresh fresh = {query, key, value, row_query, row_key, row_value, cosine, sine, half};
    Work w = {rotated, fresh, keys, values, result, row, kv_head * shared + part * GROUP, left < GROUP ? left : GROUP,
              kv_head, first, last, ((long long)slot * kv_heads + kv_head) * max_tokens * WIDTH, scale, softcap, heads,
              part == 0 && slot < state->count && position < max_tokens};
    attend_part(w, parts, arrived + (long long)row * gridDim.x + blockIdx.x, gridDim.y, blockIdx.y);
}

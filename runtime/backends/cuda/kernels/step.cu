// The kernels between a step's partitions: counting positions, deciding gates, choosing tokens, writing the cache.
#ifndef ON_CPU
extern "C" __device__ void cudaGraphSetConditional(u64 handle, unsigned int value);
#endif
#define MINUS_INF (-__int_as_float(0x7f800000))

// What a step needs to know, one for a session, at an address that never changes.
struct State {
    int count;      // rows that are written
    int warmup;     // positions at which every block runs
    int off;        // whether several rows run every block
    int step;       // number of the step, modulo the ring
};

// How a row's tokens are chosen; as runtime/text/sampling.py.
struct Choice { float temperature; int top_k; float top_p; float min_p; };

// One layer's keys and values: this step's, and the cache.
struct Layer { u64 new_key, new_value, past_key, past_value; int heads, width; };

// Each row goes on by a position and gets its threshold; rows that are not written want nothing.
extern "C" __global__ void begin_step(State* state, int* positions, const float* levels, float* thresholds, int rows,
                                      int ring) {
    after_previous();
    int row = threadIdx.x;
    if (row < rows) {
        bool written = row < state->count;
        int position = written ? positions[row] + 1 : 0;
        positions[row] = position;
        bool whole = position < state->warmup || (state->off && state->count > 1);
        thresholds[row] = !written ? -MINUS_INF : whole ? MINUS_INF : levels[row];
    }
    if (row == 0) state->step = (state->step + 1) % ring;
}

// A block runs if its gate's logit reaches the threshold of one row; if not, zeros may stand for its result.
extern "C" __global__ void decide(u64 handle, const float* logits, int count, const float* thresholds, int rows,
                                  unsigned char* ran, float* zeros, int size) {
    after_previous();
    __shared__ int wanted;
    if (threadIdx.x == 0) {
        int any = 0;
        for (int row = 0; row < rows; ++row) any |= logits[count == 1 ? 0 : row] >= thresholds[row];
        wanted = any;
        *ran = (unsigned char)any;
#ifndef ON_CPU
        if (handle) cudaGraphSetConditional(handle, any);
#endif
    }
    __syncthreads();
    if (!wanted)
        for (int i = threadIdx.x; i < size; i += blockDim.x) zeros[i] = 0.0f;
}

// The highest logit of each part of a row and its place, the first of equals; NaN is above all.
extern "C" __global__ void highest(const float* logits, int vocab, float* values, int* places) {
    after_previous();
    __shared__ float best[1024];
    __shared__ int at[1024];
    const float* row = logits + (long long)blockIdx.y * vocab;
    int size = (vocab + gridDim.x - 1) / gridDim.x, from = blockIdx.x * size;
    int to = from + size < vocab ? from + size : vocab;
    float value = MINUS_INF;
    int place = from;
    for (int i = from + threadIdx.x; i < to; i += blockDim.x)
        if (row[i] > value || (row[i] != row[i] && value == value)) { value = row[i]; place = i; }
    best[threadIdx.x] = value;
    at[threadIdx.x] = place;
    for (int half = blockDim.x / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            float other = best[threadIdx.x + half];
            int there = at[threadIdx.x + half];
            bool nan = best[threadIdx.x] != best[threadIdx.x];
            bool more = other > best[threadIdx.x] || (other == best[threadIdx.x] && there < at[threadIdx.x]);
            if ((other != other && !nan) || (more && !nan)) { best[threadIdx.x] = other; at[threadIdx.x] = there; }
        }
    }
    if (threadIdx.x == 0) {
        values[blockIdx.y * gridDim.x + blockIdx.x] = best[0];
        places[blockIdx.y * gridDim.x + blockIdx.x] = at[0];
    }
}

// Floats in an order of whole numbers.
static __device__ unsigned int ordered(float x) {
    unsigned int bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __device__ float weight(float logit, float top, float temperature) { return expf((logit - top) / temperature); }

// The order of the value above which, from the top, the weights first reach `needed`; the weights are 1 with
// temperature 0. Only values of at least `floor` count. Found byte by byte.
static __device__ unsigned int reach(const float* row, int vocab, float top, float temperature, unsigned int floor,
                                     double needed) {
    __shared__ float bins[256];
    __shared__ unsigned int prefix;
    __shared__ double left;
    if (threadIdx.x == 0) { prefix = 0; left = needed; }
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < 256; i += blockDim.x) bins[i] = 0.0f;
        __syncthreads();
        for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
            unsigned int key = ordered(row[i]);
            if (key >= floor && (shift == 24 || key >> (shift + 8) == prefix >> (shift + 8)))
                atomicAdd(&bins[key >> shift & 255], temperature == 0 ? 1.0f : weight(row[i], top, temperature));
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int bin = 255, last = 255;
            double rest = left;
            for (; bin >= 0; --bin) {
                if (bins[bin] > 0) last = bin;
                if (bins[bin] > 0 && rest <= bins[bin]) break;
                rest -= bins[bin];
            }
            if (bin < 0) {  // by rounding only: the lowest that there is
                bin = last;
                rest += bins[last];
            }
            left = rest;
            prefix |= (unsigned int)bin << shift;
        }
        __syncthreads();
    }
    unsigned int found = prefix;
    __syncthreads();
    return found;
}

// Choose each row's next token, one block a row, and tell the host. `rows` says which row of `ids` each one is.
extern "C" __global__ void choose(const float* logits, int vocab, const float* values, const int* places, int parts,
                                  const Choice* choices, const float* points, State* state, int* ids, int* told,
                                  const unsigned char* ran, unsigned char* ran_told, const int* rows, int gates,
                                  int stride) {
    after_previous();
    __shared__ float top;
    __shared__ int token;
    __shared__ double sums[1024];
    int row = blockIdx.x, me = threadIdx.x, n = blockDim.x;
    if (me == 0) {
        top = MINUS_INF;
        token = 0;
        for (int i = 0; i < parts; ++i) {
            float value = values[row * parts + i];
            if (value > top || (value != value && top == top)) { top = value; token = places[row * parts + i]; }
        }
        if (!(top < -MINUS_INF && top > MINUS_INF)) token = -1;
    }
    __syncthreads();
    Choice how = choices[row];
    if (how.temperature > 0 && token >= 0) {
        const float* mine = logits + (long long)row * vocab;
        unsigned int floor = 0;
        if (how.top_k > 0 && how.top_k < vocab) floor = reach(mine, vocab, top, 0.0f, 0, how.top_k);
        int size = (vocab + n - 1) / n, from = me * size, to = from + size < vocab ? from + size : vocab;
        for (int round = how.top_p < 1 ? 0 : 1; round < 2; ++round) {
            double sum = 0;
            for (int i = from; i < to; ++i)
                if (ordered(mine[i]) >= floor) {
                    float w = weight(mine[i], top, how.temperature);
                    if (round == 0 || w >= how.min_p) sum += w;
                }
            sums[me] = sum;
            __syncthreads();
            if (round == 0) {
                double all = 0;
                for (int i = 0; i < n; ++i) all += sums[i];
                unsigned int edge = reach(mine, vocab, top, how.temperature, floor, all * how.top_p);
                floor = edge > floor ? edge : floor;
            }
        }
        double before = 0, all = 0;
        for (int i = 0; i < n; ++i) {
            if (i < me) before += sums[i];
            all += sums[i];
        }
        double target = points[state->step * stride + row] * all;
        __syncthreads();
        if (sums[me] > 0 && before <= target && (target < before + sums[me] || before + sums[me] >= all)) {
            double at = before;
            for (int i = from; i < to; ++i) {
                float w = weight(mine[i], top, how.temperature);
                if (ordered(mine[i]) < floor || w < how.min_p) continue;
                at += w;
                token = i;
                if (target < at) break;
            }
        }
        __syncthreads();
    }
    if (me == 0) {
        if (row < state->count) ids[rows[row]] = token < 0 ? 0 : token;
        told[state->step * stride + row] = token;
    }
    if (row == 0)
        for (int i = me; i < gates; i += n) ran_told[state->step * gates + i] = ran[i];
}

// What the trunk of a stitched model gave, float [rows, width], is kept: [rows, max_tokens, width]; a block is a row.
extern "C" __global__ void keep_states(float* states, const float* hidden, const int* positions, const State* state,
                                       int width, int max_tokens, const unsigned char* ran, unsigned char* ran_told,
                                       int gates) {
    after_previous();
    int row = blockIdx.x, position = positions[row];
    if (row < state->count && position < max_tokens)
        for (int i = threadIdx.x; i < width; i += blockDim.x)
            states[((long long)row * max_tokens + position) * width + i] = hidden[(long long)row * width + i];
    if (row == 0)
        for (int i = threadIdx.x; i < gates; i += blockDim.x) ran_told[state->step * gates + i] = ran[i];
}

// What a tail reads in this step: each of its rows is a row of the trunk, at the same position.
extern "C" __global__ void take_states(float* hidden, const float* states, const int* rows, const int* positions,
                                       const State* state, int width, int max_tokens) {
    after_previous();
    int row = blockIdx.x;
    if (row >= state->count) return;
    const float* from = states + ((long long)rows[row] * max_tokens + positions[row]) * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) hidden[(long long)row * width + i] = from[i];
}

// Put a step's keys and values, half [rows, heads, tokens, width], into the cache; keys lie turned there.
extern "C" __global__ void write_kv(const Layer* layers, const int* positions, const State* state, int tokens,
                                    int valid, int bucket) {
    after_previous();
    Layer layer = layers[blockIdx.x];
    int row = blockIdx.y;
    if (row >= state->count) return;
    const unsigned short* key = (const unsigned short*)layer.new_key;
    const unsigned short* value = (const unsigned short*)layer.new_value;
    unsigned short* past_key = (unsigned short*)layer.past_key;
    unsigned short* past_value = (unsigned short*)layer.past_value;
    long long each = (long long)layer.heads * tokens * layer.width;
    for (long long i = threadIdx.x; i < each; i += blockDim.x) {
        int d = i % layer.width, t = i / layer.width % tokens;
        long long head = row * (long long)layer.heads + i / layer.width / tokens;
        int position = positions[row * tokens + t];
        if (t >= valid || position >= bucket) continue;
        past_key[(head * layer.width + d) * bucket + position] = key[row * each + i];
        past_value[(head * bucket + position) * layer.width + d] = value[row * each + i];
    }
}

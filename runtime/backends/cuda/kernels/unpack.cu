// Weights from records (packed_gemm.cu) back to half precision, row by row, as cuBLAS reads them.
// Defined from outside: BITS and PARTS, as there.
#define MINE (128 / BITS)   // columns of a lane in a chunk
#define CHUNK (4 * MINE)
#define EIGHTS (MINE / 8)   // a thread writes eight columns of a result, so neighbours write neighbouring bytes
#if BITS == 4
typedef u8 Zeros;
#else
typedef u16 Zeros;
#endif
#define RECORD (1024 + (BITS < 16 ? PARTS * (128 + 8 * BITS) : 0))

#if BITS < 16
// Code number i of eight neighbours; 4-bit codes lie in the order 0 2 4 6 1 3 5 7.
static __device__ __forceinline__ int code_of(const u32* codes, int i) {
#if BITS == 4
    return codes[0] >> 4 * (i / 2 + i % 2 * 4) & 15;
#else
    return codes[i / 4] >> 8 * (i % 4) & 255;
#endif
}
#endif

// `to` is half [results][columns], columns a multiple of 8: the weight times `factor`.
extern "C" __global__ void unpack(const u8* records, u16* to, int results, int columns, int pair, float factor) {
    long long chunks = (columns + CHUNK - 1) / CHUNK, all = (results + 15) / 16 * chunks * 64 * EIGHTS;
    long long first = blockIdx.x * (long long)blockDim.x + threadIdx.x, step = (long long)gridDim.x * blockDim.x;
    for (long long i = first; i < all; i += step) {
        int eight = i % EIGHTS, lane = i / EIGHTS % 32, high = i / (EIGHTS * 32) % 2;
        long long record_index = i / (EIGHTS * 64), tile = record_index / chunks, chunk = record_index % chunks;
        long long result = tile * 16 + high * 8 + lane / 4, column = chunk * CHUNK + lane % 4 * MINE + eight * 8;
        if (result >= results || column >= columns) continue;
        const u8* record = records + record_index * RECORD;
        const u32* codes = (const u32*)(record + (high * 32 + lane) * 16 + eight * BITS);
        u32 pairs[4];
#if BITS == 16
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            u32 even = to_half(from_half(codes[j] & 65535) * factor);
            pairs[j] = even | (u32)to_half(from_half(codes[j] >> 16) * factor) << 16;
        }
#else
        int at = eight * 8 * PARTS / MINE * 32 + lane;
        float scale = from_half(((const u32*)(record + 1024))[at] >> 16 * high & 65535) * factor;
        int zero = ((const Zeros*)(record + 1024 + PARTS * 128))[at] >> BITS * high & ((1 << BITS) - 1);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            u32 even = to_half((code_of(codes, 2 * j) - zero) * scale);
            pairs[j] = even | (u32)to_half((code_of(codes, 2 * j + 1) - zero) * scale) << 16;
        }
#endif
        *(uint4*)(to + source_of(result, results, pair) * columns + column) = uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
    }
}

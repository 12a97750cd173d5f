// Rows of an embedding, and what gates decided. A block is a row's token.

extern "C" __global__ void lookup_codes(const u8* codes, const float* scales, const u8* zeros, const int* ids, float* y,
                                        int width, int block) {
    after_previous();
    long long id = ids[blockIdx.x], blocks = (width + block - 1) / block;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        int zero = zeros ? zeros[id * blocks + i / block] : 128;
        y[(long long)blockIdx.x * width + i] = (codes[id * width + i] - zero) * scales[id * blocks + i / block];
    }
}
extern "C" __global__ void lookup_halves(const u16* table, const int* ids, float* y, int width) {
    after_previous();
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        y[(long long)blockIdx.x * width + i] = from_half(table[(long long)ids[blockIdx.x] * width + i]);
}
extern "C" __global__ void lookup_floats(const float* table, const int* ids, float* y, int width) {
    after_previous();
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        y[(long long)blockIdx.x * width + i] = table[(long long)ids[blockIdx.x] * width + i];
}

// For rows that decide together, one or more: whether one of them wants the block, or they do on average. A gate is
// decided by how far each row's logit is above its threshold.
extern "C" __global__ void join(u8* decisions, const float* margins, int rows, int on_average) {
    after_previous();
    if (threadIdx.x) return;
    bool any = false;
    float sum = 0;
    for (int row = 0; row < rows; ++row) {
        any = any || decisions[row];
        if (margins[row] > -3e38f || decisions[row]) sum += margins[row];  // a row that is not written has no say
    }
    for (int row = 0; row < rows; ++row) decisions[row] = on_average ? sum >= 0 && any : any;
}

// Which blocks ran: a byte for each row and gate, from a byte for each gate that decides and row.
extern "C" __global__ void collect(const u8* decisions, const int* leaders, u8* ran, int gates, int stride) {
    after_previous();
    int row = blockIdx.x;
    for (int gate = threadIdx.x; gate < gates; gate += blockDim.x)
        ran[row * gates + gate] = decisions[(long long)leaders[gate] * stride + row];
}

// What the kernels of a step share: types, half precision, the order of kernels, and sums over a warp.
// Defined from outside: ON_CPU where threads of a C++ compiler stand for a GPU's (tests/fakes/cpu_kernels.py).
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef ON_CPU
static __device__ __forceinline__ float from_half(u16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
static __device__ __forceinline__ u16 to_half(float x) {
    u16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

// A kernel may start while the one before it still runs, and fetches what does not depend on that, such as weights.
// Past `after_previous` all that was launched before is done. The kernel behind may start from then on, and not
// earlier: so whatever the second kernel before this one wrote can be read even before `after_previous`.
static __device__ __forceinline__ void after_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
// Bring a weight near while the kernel before still runs.
static __device__ __forceinline__ void prefetch(const float* weight, int count) {
    for (int i = threadIdx.x * 32; i < count; i += blockDim.x * 32)
        asm volatile("prefetch.global.L1 [%0];" ::"l"(weight + i));
}
static __device__ __forceinline__ float lane_sum(float x) {
#pragma unroll
    for (int away = 16; away; away /= 2) x += __shfl_xor_sync(0xffffffffu, x, away);
    return x;
}
#define LANES 32
#else
static void after_previous() {}
static void prefetch(const float*, int) {}
static float lane_sum(float x) { return x; }
#define LANES 1
#endif
#define LANE (threadIdx.x % LANES)
#define WARP (threadIdx.x / LANES)
#define WARPS_HERE (blockDim.x / LANES)

// The sum over a block, for every thread; 1,024 threads at most.
static __device__ __forceinline__ float block_sum(float x) {
    __shared__ float parts[1024 / LANES];
    x = lane_sum(x);
    __syncthreads();  // whoever still reads the parts of a sum before
    if (LANE == 0) parts[WARP] = x;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < (int)WARPS_HERE; ++i) sum += parts[i];
    return sum;
}

// What a call does about gates, in `skip`: it runs for rows that do not want the block, in its place; it gives zeros to
// the rows it does not run for, which it leaves alone otherwise; the gate was decided by the kernel right before it.
#define OTHERWISE 1
#define ZEROS 2
#define JUST_DECIDED 4

// Whether a call runs for a row; `wants` is a byte a row, null without a gate.
static __device__ __forceinline__ bool runs_for(const u8* wants, int row, int skip) {
    return !wants || (wants[row] != 0) != (skip & OTHERWISE);
}

// Whether it runs for one of the rows.
static __device__ __forceinline__ bool runs_for_any(const u8* wants, int rows, int skip) {
    if (!wants) return true;
    for (int row = 0; row < rows; ++row)
        if (runs_for(wants, row, skip)) return true;
    return false;
}

// The row of a weight that a packed result is: where its halves are joined, 8 results of the first half lie before the 8
// of the second that they meet.
static __device__ __forceinline__ long long source_of(long long result, int results, int pair) {
    if (!pair) return result;
    return result / 16 * 8 + result % 8 + (result % 16 < 8 ? 0 : results / 2);
}

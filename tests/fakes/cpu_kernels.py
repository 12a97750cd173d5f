"""Our kernels on a CPU: the text of the `.cu` files through a C++ compiler, threads as threads."""

from __future__ import annotations

import ctypes
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from adaptc.runtime.backends.cuda.driver.kernel_source import KernelSource

PRELUDE = """
#define ON_CPU
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>
struct Axes { int x, y, z; };
static thread_local Axes threadIdx, blockIdx;
static Axes blockDim, gridDim;
static std::unique_ptr<std::barrier<>> barrier, warps[32];
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(x) __attribute__((aligned(x)))
struct uint4 { unsigned int x, y, z, w; };
struct Copy { void* to; const void* from; };
static const uint4 zeros16 = {0, 0, 0, 0}, *const nothing = &zeros16;
alignas(16) static unsigned char slots[1 << 18];
#define __shared__ static
static void __syncthreads() { barrier->arrive_and_wait(); }
static float __int_as_float(int x) { float y; std::memcpy(&y, &x, 4); return y; }
static unsigned int __float_as_uint(float x) { unsigned int y; std::memcpy(&y, &x, 4); return y; }
static float from_half(unsigned short x) { _Float16 y; std::memcpy(&y, &x, 2); return (float)y; }
static unsigned short to_half(float x) { _Float16 y = (_Float16)x; unsigned short z; std::memcpy(&z, &y, 2); return z; }
static void atomicAdd(float* to, float x) { std::atomic_ref<float>(*to).fetch_add(x); }
template <class F> static void on_grid(int gx, int gy, int gz, int n, F body) {
    gridDim = {gx, gy, gz};
    blockDim = {n, 1, 1};
    for (int z = 0; z < gz; ++z)
    for (int y = 0; y < gy; ++y)
        for (int x = 0; x < gx; ++x) {
            barrier = std::make_unique<std::barrier<>>(n);
            std::memset(slots, 0xff, sizeof slots);  // numbers that are none, for who reads too early
            for (int i = 0; i < n; i += 32) warps[i / 32] = std::make_unique<std::barrier<>>(n - i < 32 ? n - i : 32);
            if (n == 1) {
                threadIdx = {0, 0, 0};
                blockIdx = {x, y, z};
                body();
                continue;
            }
            std::vector<std::thread> threads;
            for (int i = 0; i < n; ++i)
                threads.emplace_back([=] { threadIdx = {i, 0, 0}; blockIdx = {x, y, z}; body(); });
            for (auto& thread : threads) thread.join();
        }
}
"""
WARPS = """
#define ON_WARPS
#define wait() wait_but(STAGES - 2)
static thread_local std::vector<std::vector<Copy>> groups(1);
static void fetch_if(void* to, const void* from, bool there) { if (there) groups.back().push_back({to, from}); }
static void fetch(void* to, const void* from, bool there) { groups.back().push_back({to, there ? from : nothing}); }
static void fetched() { groups.emplace_back(); }
// What is copied is there once it was waited for, and not before.
static void wait_but(int newest) {
    while ((int)groups.size() > newest + 1) {
        for (auto& copy : groups.front()) std::memcpy(copy.to, copy.from, 16);
        groups.erase(groups.begin());
    }
}
static void wait_all() { fetched(); wait_but(0); }
static void __syncwarp() { warps[threadIdx.x / 32]->arrive_and_wait(); }
static void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
static int atomicAdd(int* to, int x) { return std::atomic_ref<int>(*to).fetch_add(x); }
template <class T> static T lane_of(T x, int lane) {
    static T given[8][32];
    int warp = threadIdx.x / 32;
    given[warp][threadIdx.x % 32] = x;
    __syncwarp();
    x = given[warp][lane];
    __syncwarp();
    return x;
}
template <class T> static T __shfl_sync(unsigned, T x, int lane) { return lane_of(x, lane); }
template <class T> static T __shfl_xor_sync(unsigned, T x, int away) { return lane_of(x, threadIdx.x % 32 ^ away); }
template <class T> static T __shfl_down_sync(unsigned, T x, int away) {
    int lane = threadIdx.x % 32;
    return lane_of(x, lane + away < 32 ? lane + away : lane);
}
static float __uint_as_float(unsigned x) { float y; std::memcpy(&y, &x, 4); return y; }
static float lane_sum(float x) {
    for (int away = 16; away; away /= 2) x += __shfl_xor_sync(0xffffffffu, x, away);
    return x;
}
static unsigned __byte_perm(unsigned x, unsigned y, unsigned which) {
    unsigned long long both = (unsigned long long)y << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= (unsigned)(both >> 8 * (which >> 4 * i & 7) & 255) << 8 * i;
    return result;
}
// Both halves of a word; every sum and product is rounded once.
template <class F> static unsigned halves(F of, unsigned a, unsigned b, unsigned c = 0) {
    unsigned result = 0;
    for (int at = 0; at < 32; at += 16) {
        _Float16 y = (_Float16)of((double)from_half(a >> at), (double)from_half(b >> at), (double)from_half(c >> at));
        unsigned short raw;
        std::memcpy(&raw, &y, 2);
        result |= (unsigned)raw << at;
    }
    return result;
}
static unsigned sub2(unsigned a, unsigned b) { return halves([](double x, double y, double) { return x - y; }, a, b); }
static unsigned mul2(unsigned a, unsigned b) { return halves([](double x, double y, double) { return x * y; }, a, b); }
static unsigned fma2(unsigned a, unsigned b, unsigned c) {
    return halves([](double x, double y, double z) { return x * y + z; }, a, b, c);
}
static uint4 stream16(const uint4* from) { return *from; }
static unsigned stream4(const unsigned* from) { return *from; }
template <class T> static T stream_zeros(const T* from) { return *from; }
// The instruction as NVIDIA documents it: which lane holds which elements of a, b and c.
static void mma(float* c, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    static unsigned short a[8][16][16], b[8][16][8];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, place = lane % 4;
    unsigned given[4] = {a0, a1, a2, a3}, other[2] = {b0, b1};
    for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 4; ++i)
            a[warp][group + 8 * (i % 2)][place * 2 + 8 * (i / 2) + half] = given[i] >> 16 * half;
        for (int i = 0; i < 2; ++i) b[warp][place * 2 + 8 * i + half][group] = other[i] >> 16 * half;
    }
    warps[warp]->arrive_and_wait();
    for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 16; ++k)
            c[i] += from_half(a[warp][group + 8 * (i / 2)][k]) * from_half(b[warp][k][place * 2 + i % 2]);
    warps[warp]->arrive_and_wait();
}
"""
"""A warp's instructions: its lanes wait for each other."""

OWN_LANES = "static float lane_sum(float x) { return x; }\n"
"""How common.cu sums where no thread has neighbours; `WARPS` has a sum over them."""

MOST_SHARED = 1 << 18
"""Bytes of shared memory that a launch may ask for."""

SLOTS = "extern __shared__ __align__(16) u8 slots[];"
"""Shared memory whose size a launch gives."""

KERNEL = re.compile(r'extern "C" __global__ void +(\w+) *\(([^)]*)\)')
COMPILER = ("g++", "-std=c++20", "-w")


@cache
def library(source: KernelSource, more: str = "") -> ctypes.CDLL:
    """The kernels of a source, each as `run_NAME(grid x, grid y, grid z, threads, …)`; `more` comes before them."""
    folder = Path(tempfile.mkdtemp(prefix="adaptc-kernels-"))
    defines = ["-DON_CPU", *(f"-D{define}" for define in source.defines)]
    (folder / "plain.cpp").write_text(source.text)
    plain = [*COMPILER, "-E", "-P", "-D__launch_bounds__(...)=", *defines, str(folder / "plain.cpp")]
    text = subprocess.run(plain, check=True, capture_output=True, text=True).stdout
    wrappers = []
    for name, parameters in dict(KERNEL.findall(text)).items():
        names = ", ".join(re.split(r"[\s*]+", each.strip())[-1] for each in parameters.split(","))
        wrappers.append(
            f'extern "C" void run_{name}(int gx, int gy, int gz, int n, {parameters}) '
            f"{{ on_grid(gx, gy, gz, n, [=] {{ {name}({names}); }}); }}"
        )
    own = source.text.replace(SLOTS, "").replace(OWN_LANES, "" if more else OWN_LANES)
    (folder / "kernels.cpp").write_text(PRELUDE + more + own + "\n".join(wrappers))
    command = [*COMPILER, "-O1", "-shared", "-fPIC", "-pthread", *defines[1:]]
    subprocess.run([*command, "-o", str(folder / "kernels.so"), str(folder / "kernels.cpp")], check=True)
    return ctypes.CDLL(str(folder / "kernels.so"))


def run(
    source: KernelSource, name: str, grid: tuple[int, ...], threads: int, args: list[tuple[Any, Any]], more: str = ""
) -> None:
    """One launch."""
    function = getattr(library(source, more), f"run_{name}")
    function.argtypes = [ctypes.c_int] * 4 + [kind for _, kind in args]
    function(*(*grid, 1, 1)[:3], threads, *(value for value, _ in args))

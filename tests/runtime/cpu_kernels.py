"""The kernels of runtime/kernels.py on a CPU: the same text through a C++ compiler, threads as threads."""

from __future__ import annotations

import ctypes
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from adaptc.runtime.kernels import SOURCE

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
static std::unique_ptr<std::barrier<>> barrier;
#define __global__
#define __device__
#define __shared__ static
static void __syncthreads() { barrier->arrive_and_wait(); }
static float __int_as_float(int x) { float y; std::memcpy(&y, &x, 4); return y; }
static unsigned int __float_as_uint(float x) { unsigned int y; std::memcpy(&y, &x, 4); return y; }
static void atomicAdd(float* to, float x) { std::atomic_ref<float>(*to).fetch_add(x); }
template <class F> static void on_grid(int gx, int gy, int n, F body) {
    gridDim = {gx, gy, 1};
    blockDim = {n, 1, 1};
    for (int y = 0; y < gy; ++y)
        for (int x = 0; x < gx; ++x) {
            barrier = std::make_unique<std::barrier<>>(n);
            std::vector<std::thread> threads;
            for (int i = 0; i < n; ++i)
                threads.emplace_back([=] { threadIdx = {i, 0, 0}; blockIdx = {x, y, 0}; body(); });
            for (auto& thread : threads) thread.join();
        }
}
"""
KERNEL = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\)')


@cache
def library() -> ctypes.CDLL:
    """The kernels, each as `run_NAME(grid x, grid y, threads, …)`."""
    wrappers = []
    for name, parameters in KERNEL.findall(SOURCE):
        names = ", ".join(re.split(r"[\s*]+", each.strip())[-1] for each in parameters.split(","))
        wrappers.append(
            f'extern "C" void run_{name}(int gx, int gy, int n, {parameters}) '
            f"{{ on_grid(gx, gy, n, [=] {{ {name}({names}); }}); }}"
        )
    folder = Path(tempfile.mkdtemp(prefix="adaptc-kernels-"))
    (folder / "kernels.cpp").write_text(PRELUDE + SOURCE + "\n".join(wrappers))
    command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-w"]
    subprocess.run([*command, "-o", str(folder / "kernels.so"), str(folder / "kernels.cpp")], check=True)
    return ctypes.CDLL(str(folder / "kernels.so"))


def run(name: str, grid: tuple[int, int], threads: int, args: list[tuple[Any, Any]]) -> None:
    """One launch."""
    function = getattr(library(), f"run_{name}")
    function.argtypes = [ctypes.c_int] * 3 + [kind for _, kind in args]
    function(*grid, threads, *(value for value, _ in args))

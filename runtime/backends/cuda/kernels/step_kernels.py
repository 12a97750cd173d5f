"""The kernels that go between a step's partitions: their names, and the sizes that host and GPU agree on.

NVRTC compiles `step.cu` for the GPU at hand when a session begins (0.2 s). tests/runtime/backends/cuda/test_kernels.py
compiles the same text with a C++ compiler and compares it with NumPy.
"""

from __future__ import annotations

from adaptc.runtime.backends.cuda.driver.kernel_source import KernelSource
from adaptc.runtime.backends.cuda.kernels.files import read_kernels

THREADS = 1024
"""Threads of a block that chooses a token."""

PARTS = 64
"""Blocks that share the search for the highest logit of a row."""

RING = 64
"""Steps whose tokens the host may not have read yet."""

NAMES = ("begin_step", "decide", "highest", "choose", "write_kv", "keep_states", "take_states")


def step_source() -> KernelSource:
    """The source of these kernels."""
    return read_kernels(("common", "step"))

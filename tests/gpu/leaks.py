"""Load a bundle many times, and see whether memory comes back."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.bundle.folder import Bundle
from tests.gpu.steps import whole_decoder


def load_often(bundle: Bundle, most: int, seconds: float) -> dict[str, float]:
    """Memory that is lost between the fifth load and the last, of the GPU and of this process; and seconds a load."""
    began, loads = time.perf_counter(), 0
    kept: list[tuple[int, int]] = []
    while loads < most and (len(kept) < 2 or time.perf_counter() - began < seconds):
        decoder = whole_decoder(bundle, 1, 64)
        decoder.prefill(0, np.arange(1, 9), 0.0)
        for token in (1, 2):
            decoder.decode([token])
        decoder.close()
        loads += 1
        if loads == 5 or loads % 100 == 0:
            kept.append(_held())
            print(loads, kept[-1], f"{time.perf_counter() - began:.1f} s", flush=True)
    kept.append(_held())
    each = (time.perf_counter() - began) / loads
    return {
        "loads": loads,
        "lost_gpu_bytes": kept[-1][0] - kept[0][0],
        "grown_host_bytes": kept[-1][1] - kept[0][1],
        "seconds_a_load": each,
    }


def _held() -> tuple[int, int]:
    """Bytes of the GPU that are taken, and bytes of the host's memory that this process has."""
    cuda = Cuda()
    free = cuda.free_bytes()
    cuda.close()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return cuda.device.bytes - free, pages * os.sysconf("SC_PAGE_SIZE")

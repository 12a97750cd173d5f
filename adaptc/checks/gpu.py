"""What runs bundles for ONNX Runtime on an NVIDIA GPU: whether this machine has it, and what it lacks."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from adaptc.checks.packages import version
from adaptc.runtime.backends.onnxruntime_cuda.loading import LEAST_SM

INSTALL = "pip install 'adaptc[gpu]'"
"""The line that brings all that is missing but the driver."""

_OLD_DRIVER = 35  # cudaErrorInsufficientDriver


def describe_gpu(bindings: Mapping[str, ModuleType | Any] | None = None) -> dict[str, Any]:
    """What there is, as values JSON can hold; nothing here is an error.

    Args:
        bindings: `runtime` and `nvrtc` of cuda-bindings; None to import them.

    Returns:
        `driver` and `libcuda`; `cuda_bindings` and `nvrtc`, versions or None; `gpus`, each with `name` and
        `compute_capability`; and `lacks`, a line for each thing that a bundle needs on a GPU and this machine has not.
    """
    found: dict[str, Any] = {"driver": _driver(), "libcuda": _loads("libcuda.so.1")}
    known = _imported() if bindings is None else bindings
    has_nvrtc = _has_nvrtc(known)
    found["cuda_bindings"] = version("cuda-bindings") if known else None
    found["nvrtc"] = version("nvidia-cuda-nvrtc") or "the system's" if has_nvrtc else None
    found["gpus"], trouble = _gpus(known) if known else ([], [])
    lacks = [] if known else [f"cuda-bindings: not installed; {INSTALL}"]
    lacks += [] if has_nvrtc else [f"NVRTC: not loadable; {INSTALL}"]
    lacks += trouble if known else [] if found["libcuda"] else ["no NVIDIA driver; install one"]
    return found | {"lacks": lacks}


def _driver() -> str | None:
    try:
        match = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return match[1] if match else None


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _imported() -> dict[str, Any]:
    try:
        from cuda.bindings import nvrtc, runtime
    except (ImportError, OSError, RuntimeError):
        return {}
    return {"nvrtc": nvrtc, "runtime": runtime}


def _has_nvrtc(bindings: Mapping[str, Any]) -> bool:
    try:
        return bool(bindings) and int(bindings["nvrtc"].nvrtcVersion()[0]) == 0
    except (OSError, RuntimeError):  # the library is looked for when it is first called
        return False


def _gpus(bindings: Mapping[str, Any]) -> tuple[list[dict[str, str]], list[str]]:
    """The GPUs, and what is wrong with them or the driver."""
    runtime = bindings["runtime"]
    try:
        failed, supported = runtime.cudaDriverGetVersion()
        code, count = runtime.cudaGetDeviceCount()
    except (OSError, RuntimeError) as error:
        return [], [f"no NVIDIA driver; install one ({error})"]
    if int(failed) or int(supported) == 0:
        return [], ["no NVIDIA driver; install one"]
    if int(code) == _OLD_DRIVER:
        has = f"{int(supported) // 1000}.{int(supported) % 1000 // 10}"
        return [], [f"the driver is too old: it supports CUDA {has}, and cuda-bindings is {version('cuda-bindings')}"]
    if int(code) or int(count) == 0:
        return [], ["no GPU is visible here"]
    found = [_gpu(runtime, index) for index in range(int(count))]
    if max(sm for _, sm in found) < LEAST_SM:
        name, sm = found[0]
        return _shown(found), [f"{name} has compute capability {sm / 10}; {LEAST_SM / 10} or newer is right"]
    return _shown(found), []


def _gpu(runtime: Any, index: int) -> tuple[str, int]:
    _, about = runtime.cudaGetDeviceProperties(index)
    name = about.name.decode() if isinstance(about.name, bytes) else str(about.name)
    return name.rstrip("\0"), 10 * int(about.major) + int(about.minor)


def _shown(found: list[tuple[str, int]]) -> list[dict[str, str]]:
    return [{"name": name, "compute_capability": str(sm / 10)} for name, sm in found]

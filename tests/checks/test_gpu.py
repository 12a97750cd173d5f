"""What `adaptc doctor` says of a GPU: what there is, and the one line that brings what lacks."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from adaptc.checks.gpu import INSTALL, describe_gpu

H200, T4 = ("NVIDIA H200", 9, 0), ("Tesla T4", 7, 5)


def bindings(*gpus: tuple[str, int, int], driver: int = 13000, failed: int = 0, nvrtc: int | None = 0) -> Any:
    """cuda-bindings of a machine with these GPUs; no NVRTC for None."""

    def version() -> tuple[int, int, int]:
        if nvrtc is None:
            raise RuntimeError("Failed to dlopen libnvrtc.so.13")
        return nvrtc, 13, 0

    def properties(index: int) -> tuple[int, Any]:
        name, major, minor = gpus[index]
        return 0, SimpleNamespace(name=name.encode() + b"\0", major=major, minor=minor)

    runtime = SimpleNamespace(
        cudaDriverGetVersion=lambda: (0, driver),
        cudaGetDeviceCount=lambda: (failed, len(gpus)),
        cudaGetDeviceProperties=properties,
    )
    return {"runtime": runtime, "nvrtc": SimpleNamespace(nvrtcVersion=version)}


def test_a_machine_that_has_all() -> None:
    found = describe_gpu(bindings(T4, H200))
    assert json.loads(json.dumps(found)) == found
    assert found["lacks"] == []
    assert found["gpus"] == [
        {"name": "Tesla T4", "compute_capability": "7.5"},
        {"name": "NVIDIA H200", "compute_capability": "9.0"},
    ]


@pytest.mark.parametrize(
    ("given", "lacks"),
    [
        (bindings(driver=0), "no NVIDIA driver; install one"),
        (bindings(driver=11040, failed=35), "the driver is too old: it supports CUDA 11.4, and cuda-bindings is "),
        (bindings(failed=100), "no GPU is visible here"),
        (bindings(T4), "Tesla T4 has compute capability 7.5; 8.0 or newer is right"),
        (bindings(H200, nvrtc=None), f"NVRTC: not loadable; {INSTALL}"),
    ],
)
def test_what_lacks(given: Any, lacks: str) -> None:
    [found] = describe_gpu(given)["lacks"]
    assert found.startswith(lacks)


def test_without_the_extra() -> None:
    found = describe_gpu({})
    assert found["lacks"][:2] == [f"cuda-bindings: not installed; {INSTALL}", f"NVRTC: not loadable; {INSTALL}"]
    assert INSTALL == "pip install 'adaptc[gpu]'"
    assert (found["cuda_bindings"], found["nvrtc"], found["gpus"]) == (None, None, [])

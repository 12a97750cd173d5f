"""What this machine has for compiling and running, and what it lacks."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

from adaptc.checks.gpu import describe_gpu
from adaptc.checks.packages import Package, packages, version
from adaptc.machine.memory import memory_bytes
from adaptc.machine.processor import cpu_flags, cpu_name
from adaptc.runtime.backends.onnxruntime_cpu.cores import physical_cores


def diagnose() -> dict[str, Any]:
    """Return what this machine has, as values JSON can hold. What is missing is stated, never an error."""
    total, available = memory_bytes()
    return {
        "adaptc": version("adaptc"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": {"name": cpu_name(), "cores": physical_cores(), "threads": os.cpu_count(), "flags": cpu_flags()},
        "memory": {"bytes": total, "available_bytes": available},
        "gpu": describe_gpu(),
        "engines": _engines(),
        "packages": [_package(package) for package in packages()],
    }


def _package(package: Package) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": package.name,
        "extra": package.extra,
        "wanted": package.wanted,
        "found": package.installed,
        "ok": package.ok,
    }
    return values if package.ok else values | {"install": package.install}


def _engines() -> Mapping[str, Any]:
    providers: list[str] = []
    trouble = None
    try:
        import onnxruntime
    except ImportError as error:
        trouble = str(error)
    else:
        providers = list(onnxruntime.get_available_providers())
    engines: dict[str, Any] = {
        "onnxruntime": {"version": version("onnxruntime") or version("onnxruntime-gpu"), "providers": providers},
        "tensorrt": {"version": version("tensorrt") or version("tensorrt-cu13")},
        "tensorrt_rtx": {"version": version("tensorrt-rtx") or version("tensorrt-rtx-cu13")},
    }
    if trouble:
        engines["onnxruntime"]["trouble"] = trouble
    return engines

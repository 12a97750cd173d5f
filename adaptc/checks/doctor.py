"""What this machine has for compiling and running, and what it lacks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptc.machine.memory import memory_bytes
from adaptc.machine.processor import cpu_flags, cpu_name
from adaptc.runtime.backends.onnxruntime_cpu.cores import physical_cores

EXTRAS = ("compile", "cpu", "gpu", "tensorrt", "rtx")


@dataclass(frozen=True, slots=True)
class Package:
    """A library adaptc uses.

    Attributes:
        name: As pip calls it.
        extra: Which extra of adaptc wants it; None: adaptc itself.
        wanted: Lowest version that will do, or None.
        found: The version that is installed, or None.
    """

    name: str
    extra: str | None
    wanted: str | None
    found: str | None

    @property
    def ok(self) -> bool:
        """Whether it is installed and new enough."""
        return self.found is not None and (self.wanted is None or number(self.found) >= number(self.wanted))

    @property
    def install(self) -> str:
        """The line that installs it."""
        want = f"{self.name}>={self.wanted}" if self.wanted else self.name
        return f"pip install '{f'adaptc[{self.extra}]' if self.extra else want}'"


def packages() -> tuple[Package, ...]:
    """Return every library adaptc's metadata names, with what is installed; none if adaptc itself is not."""
    try:
        requirements = importlib.metadata.requires("adaptc") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    found: dict[tuple[str | None, str], Package] = {}
    for text in requirements:
        name = re.match(r"[\w.-]+", text)
        extra = re.search(r"extra == [\"']([\w-]+)[\"']", text)
        least = re.search(r">=([\w.]+)", text.partition(";")[0])
        if name is None or name[0] == "adaptc" or (extra is not None and extra[1] not in EXTRAS):
            continue
        package = Package(name[0], extra[1] if extra else None, least[1] if least else None, version(name[0]))
        found[package.extra, package.name] = package
    return tuple(found.values())


def version(name: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def number(text: str) -> tuple[int, ...]:
    """Return a version's leading numbers, for comparing: `2.13.0+cpu` is (2, 13, 0)."""
    release = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, release[0].split("."))) if release else ()


def diagnose() -> dict[str, Any]:
    """Return what this machine has, as values JSON can hold. What is missing is said, never an error."""
    total, available = memory_bytes()
    return {
        "adaptc": version("adaptc"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": {"name": cpu_name(), "cores": physical_cores(), "threads": os.cpu_count(), "flags": cpu_flags()},
        "memory": {"bytes": total, "available_bytes": available},
        "gpu": _gpu(),
        "engines": _engines(),
        "packages": [_package(package) for package in packages()],
    }


def _package(package: Package) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": package.name, "extra": package.extra, "wanted": package.wanted, "found": package.found, "ok": package.ok
    }  # fmt: skip
    return values if package.ok else values | {"install": package.install}


def _gpu() -> dict[str, Any]:
    driver = None
    try:
        found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", Path("/proc/driver/nvidia/version").read_text())
        driver = found[1] if found else None
    except OSError:
        pass
    return {"driver": driver, "libcuda": _loads("libcuda.so.1")}


def _loads(library: str) -> bool:
    import ctypes

    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


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

"""Memory of this machine and of this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def memory_bytes() -> tuple[int, int]:
    """Return memory in all and memory free to use, in bytes; a container's limit counts. 0: not known."""
    total = available = 0
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        values = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
        total, available = values["MemTotal"], values["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        names = getattr(os, "sysconf_names", {})
        if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
            total = available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _cgroup("memory.max", "memory/memory.limit_in_bytes")
    if limit is not None and 0 < limit < total:
        used = _cgroup("memory.current", "memory/memory.usage_in_bytes") or 0
        total, available = limit, min(available, max(0, limit - used))
    return total, available


def _cgroup(*names: str) -> int | None:
    for name in names:
        try:
            text = Path("/sys/fs/cgroup", name).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None


def peak_rss_bytes() -> int:
    """The most memory this process has had resident.

    Linux hands `ru_maxrss` on from the process that started this one, so its own mark is read where there is one.
    """
    import resource  # Windows has none

    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024

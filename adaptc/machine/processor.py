"""The name of this machine's processor, and its instruction sets."""

from __future__ import annotations

import platform
import re
from pathlib import Path

CPU_FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "sve",
)
"""The instruction sets that the CPU engine's kernels choose by."""


def cpu_name() -> str | None:
    """The processor's name; None where the system does not say."""
    return _cpuinfo("model name") or platform.processor() or None


def cpu_flags() -> list[str]:
    """The instruction sets of `CPU_FLAGS` that the processor has; none where the system does not say."""
    available = set((_cpuinfo("flags") or _cpuinfo("Features") or "").split())
    return [flag for flag in CPU_FLAGS if flag in available]


def _cpuinfo(key: str) -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    match = re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE)
    return match[1] if match else None

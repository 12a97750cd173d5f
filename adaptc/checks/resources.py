"""What `adaptc check` says of the machine: memory and disk that a compile needs, and the libraries it uses."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from adaptc.checks import packages
from adaptc.checks.finding import Finding, Level
from adaptc.checks.model_size import Size
from adaptc.machine import memory

_MB = 1e6
# Rough: what compiling holds beside weights (torch, transformers, the graph), and running beside weights and cache.
_COMPILER_BYTES = 1_000_000_000
RUNTIME_BYTES = 150_000_000


def room_findings(sizes: Sequence[Size], base: Path) -> Iterator[Finding]:
    """Yield whether models of these sizes fit into this machine's memory and onto the disk of `base`."""
    weights, cache, read = (sum(getattr(size, what) for size in sizes) for what in ("bundle", "cache", "read"))
    total, available = memory.memory_bytes()
    running, compiling = weights + cache + RUNTIME_BYTES, read + weights + _COMPILER_BYTES
    needs = f"compiling needs about {compiling / _MB:,.0f} MB of memory, running {running / _MB:,.0f}"
    there = f"(weights {weights / _MB:,.0f}, KV cache {cache / _MB:,.0f}); {available / _MB:,.0f} are free"
    if total and running > total:
        fix = "a smaller max_tokens, batch or weights would fit" if cache > weights else "smaller weights would fit"
        yield Finding("machine", "error", f"{needs} {there}: {fix}")
    elif total and max(running, compiling) > available:
        yield Finding("machine", "warn", f"{needs} {there}: close other programs, or compile on another machine")
    else:
        yield Finding("machine", "ok", f"{needs} {there}")
    # The compile cache holds one copy of the bundle, the output another.
    free, wanted = shutil.disk_usage(base).free, 2 * weights
    level: Level = "ok" if free > wanted else "error"
    text = f"the bundle and the cache need about {wanted / _MB:,.0f} MB of disk; {free / _MB:,.0f} free"
    yield Finding("machine", level, text if level == "ok" else f"{text}: make room")


def version_findings() -> Iterator[Finding]:
    """Yield whether the libraries that compiling needs are installed and new enough."""
    wanted = [package for package in packages.packages() if package.extra == "compile"]
    for package in wanted:
        if not package.ok:
            have = f"{package.name} is {package.installed}" if package.installed else f"{package.name} is not installed"
            yield Finding("machine", "error", f"{have}, {package.wanted} or newer is needed; {package.install}")
    if wanted and all(package.ok for package in wanted):
        shown = ("torch", "transformers", "onnx", "onnxruntime")
        versions = ", ".join(f"{package.name} {package.installed}" for package in wanted if package.name in shown)
        yield Finding("machine", "ok", versions)

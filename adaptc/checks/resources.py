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
USUAL_TOKENS = 2048
"""Tokens of a usual text: what memory is asked of in any case."""


def room_findings(sizes: Sequence[Size], max_tokens: int, base: Path, *, whole: bool) -> Iterator[Finding]:
    """Yield whether models of these sizes fit into this machine's memory and onto the disk of `base`.

    A KV cache takes memory as texts grow. So what does not fit with texts of usual lengths is an error, and what does
    not with the longest is a warning.

    Args:
        sizes: Those of a spec's models.
        max_tokens: Of the longest texts.
        base: See above.
        whole: Whether passes run models, which then hold all weights; else one after another is read.
    """
    weights, read = (sum(getattr(size, what) for size in sizes) for what in ("bundle", "read"))
    usual = min(max_tokens, USUAL_TOKENS)
    cache, first = (sum(size.cache_of(tokens) for size in sizes) for tokens in (max_tokens, usual))
    total, available = memory.memory_bytes()
    held = read if whole else 2 * max(size.largest for size in sizes)
    # Codes that were chosen with calibration, and what is timed or measured, are in memory; others are not.
    fixed, compiling = weights + RUNTIME_BYTES, held + weights + _COMPILER_BYTES
    needs = f"compiling needs about {compiling / _MB:,.0f} MB of memory, running {(fixed + first) / _MB:,.0f}"
    caches = f"KV cache {first / _MB:,.0f}"
    if usual < max_tokens:
        caches += f" at {usual:,} tokens, {cache / _MB:,.0f} at {max_tokens:,}"
    there = f"(weights {weights / _MB:,.0f}, {caches}); {available / _MB:,.0f} are free"
    running = fixed + first
    if total and running > total:
        fix = "a smaller max_tokens, batch or weights would fit" if first > weights else "smaller weights would fit"
        yield Finding("machine", "error", f"{needs} {there}: {fix}")
    elif total and fixed + cache > total:
        longest = _longest(sizes, total - fixed, max_tokens)
        text = f"texts of more than about {longest:,} tokens do not fit; with so small a max_tokens they are refused"
        yield Finding("machine", "warn", f"{needs} {there}: {text}")
    elif total and max(running, compiling) > available:
        yield Finding("machine", "warn", f"{needs} {there}: close other programs, or compile on another machine")
    else:
        yield Finding("machine", "ok", f"{needs} {there}")
    # While codes are written they are there twice, in a scratch file and in the bundle; so they are for good where the
    # cache and the bundle are on file systems of their own.
    free, wanted = shutil.disk_usage(base).free, 2 * weights
    level: Level = "ok" if free > wanted else "error"
    text = f"the bundle and the cache need about {wanted / _MB:,.0f} MB of disk; {free / _MB:,.0f} free"
    yield Finding("machine", level, text if level == "ok" else f"{text}: make room")


def _longest(sizes: Sequence[Size], room: int, most: int) -> int:
    """The longest texts, of at most so many tokens, whose KV cache fits into some bytes."""
    least = 0
    while least < most:
        middle = (least + most + 1) // 2
        fits = sum(size.cache_of(middle) for size in sizes) <= room
        least, most = (middle, most) if fits else (least, middle - 1)
    return least


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

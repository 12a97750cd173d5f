"""Weights in huge pages, where Linux gives them.

A step reads every weight once, in order. In pages of 4 KiB the processor asks its page tables for each of them, and on
virtual machines these tables have tables of their own: two threads of an AMD EPYC read 29 GB/s so, and 61 GB/s in pages
of 2 MiB. Linux gives a process huge pages by itself only where a system is set to, which most are not, and ONNX Runtime
does not ask for them. So memory that an engine has filled is asked for after it has loaded.

Source: `MADV_COLLAPSE`, madvise(2), Linux 6.1.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from threading import Thread

import numpy as np

HUGE = 2 << 20
"""Bytes of a huge page on x86-64, and on ARM with pages of 4 KiB."""

LEAST = 32 << 20
"""Bytes that an engine must have filled: caches of a processor hold less."""

_PIECE = 32 * HUGE
"""Bytes asked for at once: threads that need new memory wait no longer than this takes."""

_MADV_COLLAPSE = 25
_PROCESS = Path("/proc/self")

Span = tuple[int, int]
"""The first address, and the one after the last."""


def filled() -> list[Span]:
    """The memory of this process that can be written and is no file's, sorted; empty where the system does not say."""
    try:
        lines = (_PROCESS / "maps").read_text().splitlines()
    except OSError:
        return []
    parts = (line.split(maxsplit=5) for line in lines)
    spans = [part[0].split("-") for part in parts if part[1] == "rw-p" and (len(part) == 5 or part[5] == "[heap]")]
    return [(int(first, 16), int(end, 16)) for first, end in spans]


def collapse_since(before: Sequence[Span]) -> Thread | None:
    """Ask for huge pages for what was filled since then, beside what else is done.

    Args:
        before: What `filled` said.

    Returns:
        The thread that asks, which has begun; None if there is little to ask for, or on another system than Linux.
        What the system refuses stays as it is.
    """
    new = list(_without(filled(), before))
    if sys.platform != "linux" or sum(end - first for first, end in new) < LEAST:
        return None
    thread = Thread(target=collapse, args=(new,), name="adaptc-huge-pages", daemon=True)
    thread.start()
    return thread


def collapse(spans: Sequence[Span]) -> None:
    """Ask for huge pages for all memory of these spans that is in use; a page of which a part is not stays out."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for span in spans:
        for first, end in _in_use(span):
            for place in range(first, end, _PIECE):
                madvise(place, min(_PIECE, end - place), _MADV_COLLAPSE)


def _without(spans: Sequence[Span], others: Sequence[Span]) -> Iterator[Span]:
    """What of spans is in none of others; both are sorted, and none of one kind meet."""
    ends = [end for _, end in others]
    for begin, end in spans:
        first = begin
        for other, other_end in islice(others, bisect_right(ends, begin), None):
            if other >= end:
                break
            if other > first:
                yield first, other
            first = other_end
        if first < end:
            yield first, end


def _in_use(span: Span) -> Iterator[Span]:
    """Runs of whole huge pages that are in memory, each small page of them; memory that nobody has touched is none."""
    first, end = -(-span[0] // HUGE) * HUGE, span[1] // HUGE * HUGE
    small = mmap.PAGESIZE
    if end <= first:
        return
    try:
        with (_PROCESS / "pagemap").open("rb") as file:
            file.seek(first // small * 8)
            entries = np.frombuffer(file.read((end - first) // small * 8), np.uint64)
    except OSError:
        return
    present = (entries >> np.uint64(63)).reshape(-1, HUGE // small).all(1)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], present, [False]]).astype(np.int8)))
    for start, stop in edges.reshape(-1, 2):
        yield first + int(start) * HUGE, first + int(stop) * HUGE

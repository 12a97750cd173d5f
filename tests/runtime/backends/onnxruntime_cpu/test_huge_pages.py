"""Weights in huge pages: what is filled is asked for, what nobody has touched is not."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from adaptc.runtime.backends.onnxruntime_cpu.huge_pages import HUGE, LEAST, _without, collapse, collapse_since, filled

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


class Memory:
    """Private memory that begins at a huge page."""

    def __init__(self, pages: int) -> None:
        self._pages = mmap.mmap(-1, (pages + 1) * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        everything = np.frombuffer(self._pages, np.uint8)
        self.first = -(-everything.ctypes.data // HUGE) * HUGE
        skipped = self.first - everything.ctypes.data
        self.bytes = everything[skipped : skipped + pages * HUGE]
        self.span = (self.first, self.first + pages * HUGE)

    def kib(self, figure: str) -> int:
        """A figure of the mapping in smaps, such as `Rss` or `AnonHugePages`."""
        lines = iter(Path("/proc/self/smaps").read_text().splitlines())
        total = 0
        inside = False
        for line in lines:
            head = line.split()[0]
            if "-" in head and not head.endswith(":"):
                first, end = (int(each, 16) for each in head.split("-"))
                inside = first < self.span[1] and end > self.span[0]
            elif inside and head == f"{figure}:":
                total += int(line.split()[1])
        return total


def grants() -> bool:
    """Whether this system collapses pages at all."""
    probe = Memory(1)
    probe.bytes[:] = 1
    collapse([probe.span])
    return probe.kib("AnonHugePages") > 0


@pytest.mark.skipif(sys.platform != "linux" or not grants(), reason="this system gives no huge pages")
def test_what_is_filled_is_in_huge_pages_and_the_same() -> None:
    memory = Memory(8)
    memory.bytes[:] = np.arange(8 * HUGE, dtype=np.uint64).astype(np.uint8)
    before = memory.bytes.copy()
    collapse([memory.span])
    assert memory.kib("AnonHugePages") == 8 * HUGE // 1024
    assert np.array_equal(memory.bytes, before)


def test_memory_that_nobody_has_touched_stays_untouched() -> None:
    memory = Memory(8)
    memory.bytes[: 2 * HUGE] = 1
    memory.bytes[2 * HUGE] = 1  # one small page of a huge one
    there = memory.kib("Rss")
    collapse([memory.span])
    assert memory.kib("Rss") == there


def test_what_was_there_before_is_left_alone() -> None:
    assert list(_without([(0, 10), (20, 30)], [])) == [(0, 10), (20, 30)]
    assert list(_without([(0, 10), (20, 30)], [(2, 4), (6, 22), (30, 40)])) == [(0, 2), (4, 6), (22, 30)]
    assert list(_without([(0, 10)], [(0, 10)])) == []
    assert list(_without([(5, 10)], [(0, 6), (9, 20)])) == [(6, 9)]


def test_little_is_not_worth_asking() -> None:
    before = filled()
    assert before == sorted(before)
    small = Memory(2)
    small.bytes[:] = 1
    assert collapse_since(before) is None
    large = Memory(LEAST // HUGE + 1)
    large.bytes[:] = 1
    thread = collapse_since(before)
    assert thread is not None
    thread.join()
    assert large.bytes.min() == 1


def test_memory_that_is_gone_is_no_fault() -> None:
    memory = Memory(4)
    memory.bytes[:] = 1
    span = memory.span
    del memory
    collapse([span])

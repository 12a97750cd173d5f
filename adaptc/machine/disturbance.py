"""How much of the machine others use while something is timed: on a shared machine no other figure says so."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")

# Columns of the first line of /proc/stat: user nice system idle iowait irq softirq steal. Guests are in user already.
_IDLE = (3, 4)
_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class Clock:
    """A moment.

    Attributes:
        wall: Seconds.
        own: CPU seconds of this process, all its threads.
        busy: CPU seconds of everybody on all processors, those a virtual machine was denied included; None where
            the system does not say, or where this process may not use all of them.
    """

    wall: float
    own: float
    busy: float | None

    @classmethod
    def now(cls) -> Clock:
        """This moment."""
        return cls(time.perf_counter(), time.process_time(), _busy_seconds())

    def others_since(self, earlier: Clock) -> float | None:
        """How many processors others kept busy between two moments, on average; None if that is not known."""
        wall = self.wall - earlier.wall
        if self.busy is None or earlier.busy is None or wall <= 0:
            return None
        return max(0.0, (self.busy - earlier.busy) - (self.own - earlier.own)) / wall


def _busy_seconds() -> float | None:
    try:
        lines = STAT.read_text().splitlines()
    except OSError:
        return None
    processors = sum(line.startswith("cpu") for line in lines) - 1
    # In a container with some of a host's processors, what the others do elsewhere disturbs nobody.
    if processors != len(os.sched_getaffinity(0)):
        return None
    ticks = [int(column) for column in lines[0].split()[1 : 1 + _COLUMNS]]
    return float(sum(t for i, t in enumerate(ticks) if i not in _IDLE)) / os.sysconf("SC_CLK_TCK")

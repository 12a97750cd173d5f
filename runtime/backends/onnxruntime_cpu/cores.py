"""How many threads are worth starting here."""

from __future__ import annotations

import math
import os
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")


def physical_cores() -> int:
    """Physical cores this process may use, at least 1.

    Two threads of one core share its vector units, so a second one only costs; a container's CPU share counts
    because threads beyond it are put to sleep in the middle of a step. Where the system does not say, every
    logical CPU counts as a core.
    """
    allowed = _allowed()
    siblings = {_text(_TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in allowed}
    return max(1, min(len(siblings), _quota()))


def _allowed() -> set[int]:
    """The logical CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _quota() -> int:
    """The container's share of CPUs, rounded up; a number no machine has if there is no limit."""
    limit = _text(_CGROUP / "cpu.max").split()  # cgroup v2: "200000 100000" or "max 100000"
    if not limit:
        limit = [_text(_CGROUP / "cpu" / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    if len(limit) != 2 or not all(part.isdigit() for part in limit) or int(limit[1]) == 0:
        return 1 << 20
    return math.ceil(int(limit[0]) / int(limit[1]))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

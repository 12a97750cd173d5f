from __future__ import annotations

import os
from pathlib import Path

import pytest

from adaptc.runtime.backends.onnxruntime_cpu import cores

SIBLINGS = [(("0", "1", "2", "3"), 4), (("0,2", "1,3", "0,2", "1,3"), 2)]
QUOTAS: list[tuple[dict[str, str], int]] = [
    ({}, 4),
    ({"cpu.max": "max 100000"}, 4),
    ({"cpu.max": "150000 100000"}, 2),
    ({"cpu.max": "10 100"}, 1),
    ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cores, "_TOPOLOGY", tmp_path / "cpu")
    monkeypatch.setattr(cores, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(cores, "_allowed", lambda: {0, 1, 2, 3})
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")


@pytest.mark.parametrize(("siblings", "expected"), SIBLINGS)
def test_threads_of_one_core_count_once(machine: Path, siblings: tuple[str, ...], expected: int) -> None:
    files = {f"cpu/cpu{cpu}/topology/thread_siblings_list": names for cpu, names in enumerate(siblings)}
    write(machine, files)
    assert cores.physical_cores() == expected


@pytest.mark.parametrize(("files", "expected"), QUOTAS)
def test_a_container_s_share_counts(machine: Path, files: dict[str, str], expected: int) -> None:
    write(machine / "cgroup", files)
    assert cores.physical_cores() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to a CPU")
def test_a_process_that_is_bound_to_one_cpu_has_one_core() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert cores.physical_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)

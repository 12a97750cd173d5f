"""The values between the kernels of a step: memory that several share which are never needed at the same time."""

from __future__ import annotations

from collections.abc import Mapping

from adaptc.runtime.bundle.gpu_steps.device_step import DeviceStep, StepCall

ITEM = {"float32": 4, "float16": 2}
"""Bytes of a number."""


def row_bytes(step: DeviceStep) -> dict[str, int]:
    """Bytes of each value for a row."""
    return {name: value.width * ITEM[value.dtype] for name, value in step.values.items()}


def places_of(step: DeviceStep, *, kept: frozenset[str]) -> dict[str, int]:
    """Which buffer each value lies in: one is free again after the last call that reads what lies in it.

    Values of a gate's two sides have the same name, and only one of them is written. What a block that may be left out
    works on keeps to the same rule: calls that do not run write nothing.

    Args:
        step: The calls.
        kept: Values that keep a buffer of their own to the end.
    """
    sizes, calls = row_bytes(step), list(step.calls())
    last = _last_reads(calls)
    rows: list[int] = []
    free: list[int] = []
    home: dict[str, int] = {}
    for index, call in enumerate(calls):
        for name in dict.fromkeys(call.writes):
            if name in home:
                continue
            fitting = [] if name in kept else [place for place in free if rows[place] >= sizes[name]] or free
            place = min(fitting, key=lambda place: abs(rows[place] - sizes[name]), default=len(rows))
            if place == len(rows):
                rows.append(0)
            else:
                free.remove(place)
            rows[place] = max(rows[place], sizes[name])
            home[name] = place
        ended = [name for name in home if last.get(name, -1) <= index and name not in kept]
        free += dict.fromkeys(home[name] for name in ended if last.get(name) == index)
    return home


def buffer_bytes(home: Mapping[str, int], step: DeviceStep) -> dict[int, int]:
    """Bytes of each buffer for a row."""
    sizes, found = row_bytes(step), dict[int, int]()
    for name, place in home.items():
        found[place] = max(found.get(place, 0), sizes[name])
    return found


def _last_reads(calls: list[StepCall]) -> dict[str, int]:
    """The last call that reads or writes each value."""
    return {name: index for index, call in enumerate(calls) for name in (*call.reads, *call.writes)}

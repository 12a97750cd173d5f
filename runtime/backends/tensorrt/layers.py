"""What a builder says it compiled: the list of steps, and what must not be in it."""

from __future__ import annotations

import re
from collections.abc import Sequence

_STEP = re.compile(r"^Name: (\S.*?), LayerType: (\w+),", re.MULTILINE)

DATA_DEPENDENT = frozenset(("TrainStation", "DeviceToShapeHost", "NonZero"))
"""Steps that make the device wait for the host, so that an engine cannot be captured."""


def steps_of(listing: str) -> tuple[str, ...]:
    """Each step as "kind name"; empty where the builder lists none (TensorRT 8.6 tells through its inspector only)."""
    return tuple(f"{kind} {name}" for name, kind in _STEP.findall(listing))


def kinds(steps: Sequence[str]) -> set[str]:
    """The kinds of steps there are."""
    return {step.partition(" ")[0] for step in steps}

"""What a GPU is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """What a GPU is.

    Attributes:
        name: As NVIDIA calls it.
        sm: Compute capability, 90 for 9.0.
        driver: Version of CUDA its driver supports, 12040 for 12.4.
        bytes: Its memory.
        multiprocessors: How many blocks of the largest size run at once.
    """

    name: str
    sm: int
    driver: int
    bytes: int
    multiprocessors: int = 1

"""CUDA C as a compiler gets it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KernelSource:
    """CUDA C with the macros it is compiled with.

    Attributes:
        text: The content of a `.cu` file.
        defines: Macros, "NAME" or "NAME=VALUE", defined before the text is read.
    """

    text: str
    defines: tuple[str, ...] = ()

"""The `.cu` files beside this module."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from adaptc.runtime.backends.cuda.driver.kernel_source import KernelSource


def read_kernels(names: str | tuple[str, ...], *defines: str) -> KernelSource:
    """The file `NAME.cu`, or several one after another, with macros, each "NAME" or "NAME=VALUE"."""
    files = (names,) if isinstance(names, str) else names
    return KernelSource("".join(map(_text, files)), defines)


@cache
def _text(name: str) -> str:
    return Path(__file__).with_name(f"{name}.cu").read_text(encoding="utf-8")

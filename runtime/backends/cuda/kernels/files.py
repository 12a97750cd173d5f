"""The `.cu` files beside this module."""

from __future__ import annotations

from pathlib import Path

from adaptc.runtime.backends.cuda.driver.kernel_source import KernelSource


def read_kernels(name: str, *defines: str) -> KernelSource:
    """The file `NAME.cu`, with macros, each "NAME" or "NAME=VALUE"."""
    return KernelSource(Path(__file__).with_name(f"{name}.cu").read_text(encoding="utf-8"), defines)

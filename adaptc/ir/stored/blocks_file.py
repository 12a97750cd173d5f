"""Chosen codes on disk, as safetensors."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
from safetensors.numpy import save_file

from adaptc.ir.blocks import Blocks
from adaptc.runtime.safetensors_file import read_safetensors


def save_blocks(blocks: Mapping[str, Blocks], path: Path) -> None:
    """Write quantized weights: NAME.packed, NAME.scales and, where there are any, NAME.zeros."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    about: dict[str, str] = {}
    for name, each in blocks.items():
        tensors[f"{name}.packed"], tensors[f"{name}.scales"] = each.packed, each.scales
        if each.zero_points is not None:
            tensors[f"{name}.zeros"] = each.zero_points
        about[name] = f"{each.columns} {each.bits} {each.block_size}"
    save_file(tensors, path, metadata=about)


def load_blocks(path: Path) -> dict[str, Blocks]:
    """Read what `save_blocks` wrote; the numbers stay in the file until they are looked at."""
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    about, tensors = read_safetensors(content)
    arrays: Mapping[str, npt.NDArray[Any]] = tensors
    blocks = {}
    for name, form in about.items():
        columns, bits, block_size = map(int, form.split())
        packed, scales, zeros = arrays[f"{name}.packed"], arrays[f"{name}.scales"], arrays.get(f"{name}.zeros")
        blocks[name] = Blocks(packed, scales, zeros, columns, 8 if bits == 8 else 4, block_size)
    return blocks

"""Chosen codes on disk, as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save_file

from adaptc.ir.blocks import Blocks


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
    """Read what `save_blocks` wrote."""
    with safe_open(path, "numpy") as file:
        names, blocks = set(file.keys()), {}
        for name, about in (file.metadata() or {}).items():
            columns, bits, block_size = map(int, about.split())
            zeros = file.get_tensor(f"{name}.zeros") if f"{name}.zeros" in names else None
            blocks[name] = Blocks(
                file.get_tensor(f"{name}.packed"),
                file.get_tensor(f"{name}.scales"),
                zeros,
                columns,
                8 if bits == 8 else 4,
                block_size,
            )
    return blocks

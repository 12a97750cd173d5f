"""Chosen codes on disk, as safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
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
    """Read what `save_blocks` wrote; the numbers stay in the file until they are looked at."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    about: Mapping[str, str] = header.pop("__metadata__", {})
    content: npt.NDArray[np.uint8] = np.memmap(path, np.uint8, "r").view(np.ndarray)[8 + size :]

    def array(name: str) -> npt.NDArray[Any]:
        first, last = header[name]["data_offsets"]
        kind = {"U8": np.uint8, "F32": np.float32}[header[name]["dtype"]]
        numbers: npt.NDArray[Any] = content[first:last].view(kind).reshape(header[name]["shape"])
        return numbers

    blocks = {}
    for name, form in about.items():
        columns, bits, block_size = map(int, form.split())
        zeros = array(f"{name}.zeros") if f"{name}.zeros" in header else None
        packed, scales = array(f"{name}.packed"), array(f"{name}.scales")
        blocks[name] = Blocks(packed, scales, zeros, columns, 8 if bits == 8 else 4, block_size)
    return blocks

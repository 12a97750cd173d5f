"""Chosen codes on disk, as safetensors."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.ir.blocks import Blocks
from adaptc.runtime.safetensors_file import read_safetensors

_TYPES = {"|u1": "U8", "<f4": "F32"}


def save_blocks(blocks: Mapping[str, Blocks], path: Path) -> None:
    """Write quantized weights: NAME.packed, NAME.scales and, where there are any, NAME.zeros.

    One array after another, as the library, which makes a copy of all of them first, would.
    """
    tensors: dict[str, npt.NDArray[Any]] = {f"{name}.scales": each.scales for name, each in blocks.items()}
    about: dict[str, str] = {}
    for name, each in blocks.items():
        tensors[f"{name}.packed"] = each.packed
        if each.zero_points is not None:
            tensors[f"{name}.zeros"] = each.zero_points
        about[name] = f"{each.columns} {each.bits} {each.block_size}"
    header: dict[str, Any] = {"__metadata__": about}
    end = 0
    for name, array in tensors.items():
        first, end = end, end + array.nbytes
        header[name] = {"dtype": _TYPES[array.dtype.str], "shape": list(array.shape), "data_offsets": [first, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that scales, which come first, lie at multiples of their size
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


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

"""Tensors of safetensors files, each mapped by itself."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from adaptc.errors import LoadError, one_line

if TYPE_CHECKING:
    import torch


def starts_of(path: Path) -> dict[str, int]:
    """Return where each tensor of a safetensors file begins, in bytes; the file was checked before."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return {name: 8 + size + about["data_offsets"][0] for name, about in header.items() if name != "__metadata__"}


def mapped(origin: str, path: Path, dtype: str, shape: tuple[int, ...], start: int) -> torch.Tensor:
    """Map one tensor of a file, alone: what was read of it counts as memory only as long as the tensor is held.

    Args:
        origin: The model's name in the spec, for errors.
        path: The file.
        dtype: Its type, `F64`, `F32`, `F16` or `BF16`.
        shape: Its shape.
        start: Where it begins, in bytes.

    Raises:
        LoadError: the file cannot be read any more.
    """
    import numpy as np
    import torch

    kind = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    size = math.prod(shape) * kind.itemsize
    if not size:
        return torch.empty(shape, dtype=kind)
    try:
        content = np.memmap(path, np.uint8, "c", start, (size,))
    except (OSError, ValueError) as error:
        raise LoadError(f"{origin}: {path.name} cannot be read any more: {one_line(error)}") from error
    return torch.from_numpy(content).view(kind).reshape(shape)

"""Safetensors files as NumPy arrays, without the library: a header in JSON, and the tensors' bytes after it.

Format: https://huggingface.co/docs/safetensors. What the library refuses (a hole, an overlap, a size that does not fit)
is refused here.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
    "BF16": "<u2",
}


def read_safetensors(content: bytes | mmap.mmap) -> tuple[dict[str, str], dict[str, Array]]:
    """The metadata and the tensors of a safetensors file.

    Args:
        content: The file, or a map of it that nobody writes to: arrays stay in the file until they are looked at.

    Returns:
        Texts by name; read-only arrays by name in their stored dtypes, of bfloat16 as float32.

    Raises:
        ValueError: it is damaged, or no safetensors file.
    """
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > len(content) - 8:
        raise ValueError("cut short, or no safetensors file")
    try:
        header = json.loads(content[8 : 8 + size])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not a mapping")  # noqa: TRY004  (the file is wrong, not a type of ours)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(each, str) for each in metadata.values()):
        raise ValueError("its metadata are not texts")
    data = memoryview(content)[8 + size :]
    spans: list[tuple[int, int]] = []
    tensors = {name: _tensor(name, about, data, spans) for name, about in header.items()}
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise ValueError(f"a hole or an overlap at byte {end}")
        end = last
    if end != len(data):
        raise ValueError(f"{len(data)} bytes of tensors; {end} are declared")
    return metadata, tensors


def _tensor(name: str, about: Any, data: memoryview, spans: list[tuple[int, int]]) -> Array:
    """One tensor; where it lies is added to `spans`."""
    if not isinstance(about, Mapping) or str(about.get("dtype")) not in _TYPES:
        raise ValueError(f"{name}: no dtype that is known")
    shape, place = _whole(name, about.get("shape")), _whole(name, about.get("data_offsets"))
    if len(place) != 2:
        raise ValueError(f"{name}: data_offsets {place}; two are right")
    first, last = place
    kind = np.dtype(_TYPES[about["dtype"]])
    if last > len(data) or math.prod(shape) * kind.itemsize != last - first:
        raise ValueError(f"{name}: {last - first} bytes from {first} do not hold {about['dtype']} {shape}")
    spans.append((first, last))
    array: Array = np.frombuffer(data[first:last], kind).reshape(shape)
    if about["dtype"] == "BF16":
        array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array


def _whole(name: str, value: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(each) is int and each >= 0 for each in value):
        raise ValueError(f"{name}: {str(value)[:40]}; a list of whole numbers is right")
    return value

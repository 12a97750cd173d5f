"""The codes of a GGUF file's tensors: grids on which the file's own numbers lie, for the ggml types that have one.

A type's blocks are told apart by their scales and offsets alone, which are read here; codes follow from the numbers
that `gguf` dequantizes, and the grid is held against these, bit for bit.
Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from adaptc.errors import LoadError
from adaptc.ir.source_grid import SourceGrid
from adaptc.sources.gguf.file import GgufFile, GgufTensor

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Scales = tuple[Floats, Floats | None]
"""Scales and offsets, each float32 [blocks, groups of a block]; no offsets where all are 0."""


def _half(blocks: Bytes, start: int) -> Floats:
    """A float16 of each block: float32 [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def _scale_at(start: int) -> Callable[[Bytes], Scales]:
    return lambda blocks: (_half(blocks, start), None)


def _scale_and_minimum(blocks: Bytes) -> Scales:
    return _half(blocks, 0), _half(blocks, 2)


def _of_32_in_k(blocks: Bytes) -> Scales:
    """Q4_K, Q5_K: 8 scales and 8 minima of 6 bits, the upper four of each in pieces."""
    first, second, last = (blocks[:, start : start + 4] for start in (4, 8, 12))
    scales = np.concatenate([first & 63, (last & 15) | (first >> 6 << 4)], 1)
    minima = np.concatenate([second & 63, (last >> 4) | (second >> 6 << 4)], 1)
    return _half(blocks, 0) * scales.astype(np.float32), -(_half(blocks, 2) * minima.astype(np.float32))


def _q2_k(blocks: Bytes) -> Scales:
    packed = blocks[:, :16]
    scales, minima = (packed & 15).astype(np.float32), (packed >> 4).astype(np.float32)
    return _half(blocks, 80) * scales, -(_half(blocks, 82) * minima)


def _q3_k(blocks: Bytes) -> Scales:
    """16 scales of 6 bits: low halves in 8 bytes, upper two bits in 4."""
    low, high = blocks[:, 96:104], blocks[:, 104:108]
    lower = np.concatenate([low & 15, low >> 4], 1).astype(np.int16)
    upper = np.concatenate([(high >> shift) & 3 for shift in (0, 2, 4, 6)], 1).astype(np.int16)
    return _half(blocks, 108) * ((lower | upper << 4) - 32).astype(np.float32), None


def _q6_k(blocks: Bytes) -> Scales:
    return _half(blocks, 208) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32), None


def _iq4_xs(blocks: Bytes) -> Scales:
    """8 scales of 6 bits: low halves in 4 bytes, upper two bits in a number of 16."""
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2").astype(np.int16)
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], -1).reshape(-1, 8).astype(np.int16)
    upper = np.concatenate([(high >> 2 * place) & 3 for place in range(8)], 1)
    return _half(blocks, 0) * ((low | upper << 4) - 32).astype(np.float32), None


def _mxfp4(blocks: Bytes) -> Scales:
    """A power of two; codes are twice the numbers of e2m1, which are halves."""
    return np.ldexp(np.float32(0.5), blocks[:, :1].astype(np.int32) - 127), None


@dataclass(frozen=True, slots=True)
class _Type:
    """A ggml type whose numbers lie on a grid.

    Attributes:
        levels: Number of codes.
        zero: The code of 0, before offsets.
        group: Weights that share a scale.
        scales: Takes blocks, uint8 [blocks, bytes].
    """

    levels: int
    zero: int
    group: int
    scales: Callable[[Bytes], Scales]


_TYPES: Mapping[str, _Type] = MappingProxyType(
    {
        "Q4_0": _Type(16, 8, 32, _scale_at(0)),
        "Q4_1": _Type(16, 0, 32, _scale_and_minimum),
        "Q5_0": _Type(32, 16, 32, _scale_at(0)),
        "Q5_1": _Type(32, 0, 32, _scale_and_minimum),
        "Q8_0": _Type(256, 128, 32, _scale_at(0)),
        "Q2_K": _Type(4, 0, 16, _q2_k),
        "Q3_K": _Type(8, 4, 16, _q3_k),
        "Q4_K": _Type(16, 0, 32, _of_32_in_k),
        "Q5_K": _Type(32, 0, 32, _of_32_in_k),
        "Q6_K": _Type(64, 32, 16, _q6_k),
        "IQ4_NL": _Type(256, 128, 32, _scale_at(0)),
        "IQ4_XS": _Type(256, 128, 32, _iq4_xs),
        "TQ1_0": _Type(4, 1, 256, _scale_at(52)),
        "TQ2_0": _Type(4, 1, 256, _scale_at(64)),
        "MXFP4": _Type(256, 128, 32, _mxfp4),
    }
)

FLOATS = frozenset(("F32", "F16", "BF16", "F64"))
"""ggml types that are floats."""


def type_name(tensor: GgufTensor) -> str:
    """The name of a tensor's ggml type."""
    import gguf

    name: str = gguf.GGMLQuantizationType(tensor.kind).name
    return name


def has_grid(tensor: GgufTensor) -> bool:
    """Whether a tensor is a matrix whose numbers lie on a grid."""
    return len(tensor.shape) == 2 and tensor.bytes > 0 and type_name(tensor) in _TYPES


def read_grid(file: GgufFile, tensor: GgufTensor) -> SourceGrid | None:
    """Read a matrix's codes.

    Args:
        file: The file that holds it.
        tensor: One of its tensors that `has_grid`.

    Returns:
        A grid whose `dense` is what `file.read` gives, bit for bit; None if its scales leave float32 so far that no
        code can be told from the numbers.

    Raises:
        LoadError: the file cannot be read or is damaged.
    """
    import gguf

    kind = _TYPES[type_name(tensor)]
    size, count = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(tensor.kind)]
    values = file.read(tensor)
    rows = tensor.shape[0]
    blocks = np.memmap(file.path, np.uint8, "r", tensor.start, (tensor.bytes,)).reshape(-1, count)
    scales, offsets = (
        None if each is None else np.broadcast_to(each, (len(each), size // kind.group)).reshape(rows, -1)
        for each in kind.scales(blocks)
    )
    assert scales is not None
    if not (np.isfinite(values).all() and np.isfinite(scales).all()):
        raise LoadError(f"{file.path}: tensor {tensor.name} has values that are not finite; the file is damaged")
    codes = values.reshape(rows, -1, kind.group).copy()
    if offsets is not None:
        codes -= offsets[..., None]
    codes /= np.where(scales == 0, np.float32(1), scales)[..., None]
    codes[scales == 0] = 0
    codes = np.rint(codes, out=codes) + kind.zero
    np.clip(codes, 0, kind.levels - 1, out=codes)
    zeros = np.full((1, 1), kind.zero, np.int16)
    grid = SourceGrid(
        codes.astype(np.uint8).reshape(tensor.shape),
        kind.levels,
        kind.group,
        np.ascontiguousarray(scales),
        zeros,
        None if offsets is None else np.ascontiguousarray(offsets),
    )
    return grid if np.array_equal(grid.dense(), values) else None

"""Weights in blocks of 4 or 8 bits, in the layout of ONNX Runtime's MatMulNBits.

A block is `block_size` neighbouring weights of one row that share a scale and a zero point:
weight = (code - zero point) · scale, codes 0 .. 2^bits - 1. Without zero points the zero point is 2^(bits - 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from adaptc.errors import PassError
from adaptc.ir.blocks import Bits, Blocks, nearest_blocks, packed_blocks, padded
from adaptc.ir.unread.constants import Rows
from adaptc.passes.quantize.rounding import Curvature, curvature, round_codes

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def quantize_blocks(
    weight: Rows,
    bits: Bits,
    block_size: int = 32,
    *,
    symmetric: bool = False,
    hessian: Floats | Curvature | None = None,
) -> Blocks:
    """Quantize a matrix so that what it computes changes little.

    Without a Hessian, each block's scale and zero point are searched for the least squared error of its weights.
    With one, codes are chosen by GPTQ (arXiv:2210.17323): the error of each column is made good by the columns after
    it, so that the error of the *outputs* on the calibration inputs is small.

    Args:
        weight: float32 [rows, columns], as in `y = x @ weight.T`.
        bits: 4 or 8.
        block_size: Neighbouring columns that share a scale: 16, 32, 64, 128 or 256.
        symmetric: Do without zero points.
        hessian: float32 [columns, columns], mean of x xᵀ over calibration inputs x; only ratios matter. Or what
            `curvature_of` made of it, if several matrices share it.

    Raises:
        PassError: a shape does not fit, or a value is not finite.
    """
    if hessian is None:
        return nearest_blocks(weight, bits, block_size, symmetric=symmetric)
    matrix = padded(weight[:], block_size)
    curve = hessian if isinstance(hessian, Curvature) else curvature_of(hessian, block_size)
    if len(curve.order) != matrix.shape[1] or curve.block_size != block_size:
        raise PassError(f"a Hessian over {len(curve.order)} columns for a weight of {weight.shape[1]}")
    codes, grid = round_codes(matrix, curve, bits, symmetric=symmetric)
    return packed_blocks(codes, grid, weight.shape[1], symmetric=symmetric)


def curvature_of(hessian: Floats, block_size: int = 32) -> Curvature:
    """Factor a Hessian [columns, columns] once, for all the matrices that share the inputs it is of.

    Raises:
        PassError: it is not square, not finite or not positive.
    """
    if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1]:
        raise PassError(f"a Hessian of shape {list(hessian.shape)}; it would be square")
    padding = -len(hessian) % block_size
    return curvature(np.pad(hessian, ((0, padding), (0, padding))), block_size)


def dequantize(blocks: Blocks) -> Floats:
    """The matrix that blocks stand for: float32 [rows, columns]."""
    rows, count, _ = blocks.packed.shape
    codes = _unpack(blocks.packed, blocks.bits).astype(np.float32)
    if blocks.zero_points is None:
        zeros: Floats = np.full((rows, count), 2 ** (blocks.bits - 1), np.float32)
    else:
        zeros = _unpack(blocks.zero_points, blocks.bits)[:, :count].astype(np.float32)
    values = (codes - zeros[:, :, None]) * blocks.scales[:, :, None]
    return np.ascontiguousarray(values.reshape(rows, -1)[:, : blocks.columns])


def concatenate(parts: Sequence[Blocks]) -> Blocks:
    """Stack the rows of matrices over one input, as fused projections do (query, key and value).

    Raises:
        PassError: the parts do not agree in columns, bits, block size or in having zero points.
    """
    first = parts[0]
    if len({(p.columns, p.bits, p.block_size, p.zero_points is None) for p in parts}) != 1:
        raise PassError("quantized matrices can be stacked only if columns, bits, blocks and zero points agree")
    zeros = [part.zero_points for part in parts if part.zero_points is not None]
    return Blocks(
        np.concatenate([part.packed for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate(zeros) if zeros else None,
        first.columns,
        first.bits,
        first.block_size,
    )


def rows_from(blocks: Blocks, first: int) -> Blocks:
    """The matrix from this row on."""
    zeros = None if blocks.zero_points is None else blocks.zero_points[first:]
    parts = blocks.packed[first:], blocks.scales[first:], zeros
    return Blocks(*parts, blocks.columns, blocks.bits, blocks.block_size)


def split(blocks: Blocks, rows: Sequence[int]) -> list[Blocks]:
    """Cut the rows of a matrix apart again: the opposite of `concatenate`."""
    ends = np.cumsum(rows)
    assert ends[-1] == blocks.rows, f"{list(rows)} rows of {blocks.rows}"
    spans = [slice(end - count, end) for end, count in zip(ends, rows, strict=True)]
    zeros = blocks.zero_points
    return [
        replace(
            blocks,
            packed=blocks.packed[span],
            scales=blocks.scales[span],
            zero_points=None if zeros is None else zeros[span],
        )
        for span in spans
    ]


def _unpack(packed: Bytes, bits: Bits) -> Bytes:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)

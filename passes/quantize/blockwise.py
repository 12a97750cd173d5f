"""Weights in blocks of 4 or 8 bits, in the layout of ONNX Runtime's MatMulNBits.

A block is `block_size` neighbouring weights of one row that share a scale and a zero point:
weight = (code - zero point) · scale, codes 0 .. 2^bits - 1. Without zero points the zero point is 2^(bits - 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from adaptc.errors import PassError
from adaptc.ir.blocks import Bits, Blocks, nearest_blocks, packed_blocks, padded
from adaptc.ir.grid import Grid
from adaptc.ir.unread.rows import Rows
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
    done = round_codes(torch.from_numpy(matrix).to(curve.lower.device), curve, bits, symmetric=symmetric)
    codes, scales, zeros = (each.cpu().numpy() for each in (done.codes, done.scales, done.zeros))
    return packed_blocks(codes, Grid(scales, zeros, bits, block_size), weight.shape[1], symmetric=symmetric)


def curvature_of(hessian: Floats | torch.Tensor, block_size: int = 32) -> Curvature:
    """Factor a Hessian [columns, columns] once, for all the matrices that share the inputs it is of.

    Where it is, on a CPU or a GPU, these matrices will be rounded.

    Raises:
        PassError: it is not square, not finite or not positive.
    """
    hessian = torch.as_tensor(hessian)
    if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1]:
        raise PassError(f"a Hessian of shape {list(hessian.shape)}; it would be square")
    if padding := -len(hessian) % block_size:  # to pad by nothing would make a copy
        hessian = torch.nn.functional.pad(hessian, (0, padding, 0, padding))
    return curvature(hessian, block_size)


def dequantize(blocks: Blocks) -> Floats:
    """The matrix that blocks stand for: float32 [rows, columns]."""
    matrix: Floats = dequantized(blocks).numpy()
    return matrix


def dequantized(blocks: Blocks, device: torch.device | str = "cpu") -> torch.Tensor:
    """The matrix that blocks stand for, made on a device: float32 [rows, columns]."""
    rows, count, _ = blocks.packed.shape
    values = _unpack(_on(device, blocks.packed), blocks.bits).float()
    if blocks.zero_points is None:
        values -= 2 ** (blocks.bits - 1)
    else:
        values -= _unpack(_on(device, blocks.zero_points), blocks.bits)[:, :count, None]
    values *= _on(device, blocks.scales)[:, :, None]
    return values.reshape(rows, -1)[:, : blocks.columns].contiguous()


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


def _on(device: torch.device | str, array: npt.NDArray[Any]) -> torch.Tensor:
    """An array on a device; one that is mapped from a file is copied, as torch warns of what it cannot write."""
    return torch.from_numpy(np.require(array, requirements="W")).to(device)


def _unpack(packed: torch.Tensor, bits: Bits) -> torch.Tensor:
    if bits == 8:
        return packed
    return torch.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)

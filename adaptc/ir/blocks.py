"""A matrix in blocks of 4 or 8 bits, in the layout of ONNX Runtime's MatMulNBits.

A block is `block_size` neighbouring weights of one row that share a scale and a zero point:
weight = (code - zero point) · scale, codes 0 .. 2^bits - 1. Without zero points the zero point is 2^(bits - 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Bits = Literal[4, 8]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Blocks:
    """A quantized matrix [rows, columns], ready to be MatMulNBits' inputs B, scales and zero_points.

    Attributes:
        packed: uint8 [rows, blocks, block_size · bits / 8]; of two 4-bit codes the first has the low half.
        scales: float32 [rows, blocks].
        zero_points: uint8 [rows, ceil(blocks · bits / 8)], packed alike; None: all are 2^(bits - 1).
        columns: Columns of the matrix; the last block is padded with weights of 0 if they do not fill it.
        bits: Bits of a code.
        block_size: Weights in a block: 16, 32, 64, 128 or 256.
    """

    packed: Bytes
    scales: Floats
    zero_points: Bytes | None
    columns: int
    bits: Bits
    block_size: int

    @property
    def rows(self) -> int:
        """Rows of the matrix (outputs)."""
        return int(self.scales.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points: what a matrix-vector product reads."""
        zeros = 0 if self.zero_points is None else self.zero_points.nbytes
        return self.packed.nbytes + self.scales.nbytes + zeros

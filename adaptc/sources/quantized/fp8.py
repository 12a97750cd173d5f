"""fp8 as DeepSeek and Qwen publish it: float8 of a scale for each square of weights, or for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptc.errors import LoadError, one_line
from adaptc.sources.quantized.packed import FLOATS, Floats, Method, PackedMatrix, Piece

FLOAT8 = "F8_E4M3"
_SCALES = (*FLOATS, "F8_E8M0")

REMARK = (
    "its weights are fp8, which no kernel of a CPU multiplies by: they are read as floats, and `weights: source` has "
    "the nearest codes of 8 bits"
)


@dataclass(frozen=True, slots=True)
class Fp8(Method):
    """Float8 weights.

    Attributes:
        block: Rows and columns that share a scale; None where a matrix, or a row, has one.
    """

    block: tuple[int, int] | None

    @classmethod
    def of(cls, origin: str, values: Mapping[str, Any]) -> Fp8:
        """From a quantization config.

        Raises:
            LoadError: it is of a kind that is not read.
        """
        block, form = values.get("weight_block_size"), str(values.get("fmt", "e4m3"))
        if not form.startswith("e4m3") and not form.startswith("float8_e4m3"):
            raise LoadError(f"{origin}: fp8 in the format {one_line(form)[:40]}; e4m3 is read")
        if block is None:
            return cls(origin, "fp8", None)
        if not isinstance(block, list) or len(block) != 2 or not all(isinstance(n, int) and n > 0 for n in block):
            raise LoadError(
                f"{origin}: quantization_config: weight_block_size is {one_line(block)[:40]}; two positive numbers "
                "are right"
            )
        return cls(origin, "fp8", (block[0], block[1]))

    @property
    def leaves(self) -> tuple[str, ...]:
        """See `Method.leaves`."""
        return "weight", "weight_scale_inv", "weight_scale"

    @property
    def remarks(self) -> tuple[str, ...]:
        """See `Method.remarks`."""
        return (REMARK,)

    def matrix(self, module: str, pieces: Mapping[str, Piece]) -> PackedMatrix | None:
        """See `Method.matrix`."""
        weight = pieces.get("weight")
        if weight is None or weight.dtype in FLOATS:
            return None
        name = "weight_scale_inv" if "weight_scale_inv" in pieces or self.block else "weight_scale"
        [scale] = self.need(module, pieces, name)
        return float8_matrix(self, module, weight, name, scale, self.block)


def float8_matrix(
    method: Method, module: str, weight: Piece, name: str, scale: Piece, block: tuple[int, int] | None
) -> PackedMatrix:
    """A matrix of float8 numbers times scales: of squares, of rows, or one.

    Raises:
        LoadError: types or shapes do not agree.
    """
    method.check(module, "weight", weight, (FLOAT8,), weight.shape)
    if len(weight.shape) != 2:
        raise method.fault(module, f"weight is {list(weight.shape)}; two dimensions are right")
    rows, columns = weight.shape
    if block is not None:
        shape: tuple[int, ...] = -(-rows // block[0]), -(-columns // block[1])
    else:
        shape = scale.shape if scale.shape in ((), (1,), (1, 1), (rows,), (rows, 1)) else (rows, 1)
    method.check(module, name, scale, _SCALES, shape)

    def dense() -> Floats:
        factors = scale.floats()
        if block is not None:
            factors = factors.repeat(block[0], 0)[:rows].repeat(block[1], 1)[:, :columns]
        values: Floats = weight.floats() * (factors if factors.ndim == 2 else factors.reshape(-1, 1))
        return np.ascontiguousarray(values)

    return PackedMatrix((rows, columns), dense)

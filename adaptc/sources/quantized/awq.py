"""AWQ in the layout of its GEMM kernels: codes packed along the outputs, eight to a word, in an order of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.errors import LoadError, one_line
from adaptc.ir.source_grid import SourceGrid
from adaptc.sources.quantized.packed import FLOATS, Method, PackedMatrix, Piece, group_size, groups_of, unpacked, whole

_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which of a word's eight codes, from its lowest bits on, each output has."""


@dataclass(frozen=True, slots=True)
class Awq(Method):
    """AWQ's packing in 4 bits.

    Attributes:
        group_size: Inputs that share a scale; -1 for all.
    """

    group_size: int

    @classmethod
    def of(cls, origin: str, values: Mapping[str, Any]) -> Awq:
        """From a quantization config.

        Raises:
            LoadError: it is of a kind that is not read.
        """
        bits = whole(origin, values, "bits" if "bits" in values else "w_bit", 4)
        version = str(values.get("version", values.get("format", "gemm"))).lower()
        if bits != 4 or version != "gemm":
            raise LoadError(f"{origin}: AWQ in {bits} bits, version {one_line(version)[:40]}; 4 bits, gemm, are read")
        key = "group_size" if "group_size" in values else "q_group_size"
        return cls(origin, "awq", group_size(origin, values, key))

    @property
    def leaves(self) -> tuple[str, ...]:
        """See `Method.leaves`."""
        return "qweight", "qzeros", "scales"

    def matrix(self, module: str, pieces: Mapping[str, Piece]) -> PackedMatrix | None:
        """See `Method.matrix`."""
        if "qweight" not in pieces:
            return None
        weight, zeros, scales = self.need(module, pieces, "qweight", "qzeros", "scales")
        if len(weight.shape) != 2:
            raise self.fault(module, f"qweight is {list(weight.shape)}; two dimensions are right")
        columns, rows = weight.shape[0], weight.shape[1] * 8
        groups, size = groups_of(columns, self.group_size)
        self.check(module, "qweight", weight, ("I32",), weight.shape)
        self.check(module, "qzeros", zeros, ("I32",), (groups, rows // 8))
        self.check(module, "scales", scales, FLOATS, (groups, rows))

        def grid() -> SourceGrid:
            codes, points = (np.ascontiguousarray(_in_order(each).T) for each in (weight, zeros))
            return SourceGrid(codes, 16, size, np.ascontiguousarray(scales.floats().T), points.astype(np.int16))

        return PackedMatrix((rows, columns), lambda: grid().dense(), grid)


def _in_order(piece: Piece) -> npt.NDArray[np.uint8]:
    """Codes of 4 bits, uint8 [groups or inputs, outputs]."""
    codes = unpacked(piece.integers(), 4)
    ordered: npt.NDArray[np.uint8] = codes.reshape(len(codes), -1, 8)[..., list(_ORDER)].reshape(len(codes), -1)
    return ordered

"""bitsandbytes: numbers from a table of 16 times a scale for each block, or 8 bits with a scale for each row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from adaptc.errors import LoadError, one_line
from adaptc.ir.source_grid import SourceGrid
from adaptc.sources.quantized.packed import Floats, Method, PackedMatrix, Piece

_STATE = "weight.quant_state.bitsandbytes__"
_KINDS = ("nf4", "fp4")
_STORAGE = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4}
"""Types that packed bytes are stored as (`bnb_4bit_quant_storage`), by bytes."""

REMARK = (
    "its weights are bitsandbytes' 4 bits, numbers of a table that no kernel multiplies by: they are read as floats, "
    "and `weights: source` has the nearest codes of 8 bits"
)


@dataclass(frozen=True, slots=True)
class Bitsandbytes(Method):
    """What bitsandbytes saves.

    Attributes:
        bits: 4 or 8.
    """

    bits: int

    @classmethod
    def of(cls, origin: str, values: Mapping[str, Any]) -> Bitsandbytes:
        """From a quantization config.

        Raises:
            LoadError: it says neither 4 nor 8 bits.
        """
        four, eight = values.get("load_in_4bit"), values.get("load_in_8bit")
        if bool(four) == bool(eight):
            raise LoadError(f"{origin}: quantization_config: load_in_4bit or load_in_8bit is right, one of them")
        return cls(origin, "bitsandbytes", 4 if four else 8)

    @property
    def leaves(self) -> tuple[str, ...]:
        """See `Method.leaves`."""
        states = tuple(_STATE + kind for kind in _KINDS)
        tables = ("weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map")
        return "weight", *tables, *states, "SCB", "weight_format"

    @property
    def remarks(self) -> tuple[str, ...]:
        """See `Method.remarks`."""
        if self.bits == 8:
            return ()
        return (REMARK,)

    def matrix(self, module: str, pieces: Mapping[str, Piece]) -> PackedMatrix | None:
        """See `Method.matrix`."""
        state = next((kind for kind in _KINDS if _STATE + kind in pieces), None)
        if state is not None:
            return self._table(module, pieces, pieces[_STATE + state])
        weight = pieces.get("weight")
        if weight is not None and weight.dtype == "I8":
            return self._rows(module, weight, pieces)
        return None

    def _rows(self, module: str, weight: Piece, pieces: Mapping[str, Piece]) -> PackedMatrix:
        [scale] = self.need(module, pieces, "SCB")
        if len(weight.shape) != 2:
            raise self.fault(module, f"weight is {list(weight.shape)}; two dimensions are right")
        rows, columns = weight.shape
        self.check(module, "SCB", scale, ("F32",), (rows,))
        order = pieces.get("weight_format")
        if order is not None and order.integers().any():
            raise self.fault(module, "weight_format is that of a GPU's tiles; rows (0) are right: save it again")

        def grid() -> SourceGrid:
            codes = (weight.integers().astype(np.int16) + 128).astype(np.uint8)
            scales = (scale.floats() / np.float32(127))[:, None]
            return SourceGrid(codes, 256, columns, scales, np.full((1, 1), 128, np.int16))

        return PackedMatrix((rows, columns), lambda: grid().dense(), grid)

    def _table(self, module: str, pieces: Mapping[str, Piece], stated: Piece) -> PackedMatrix:
        weight, scales, table = self.need(module, pieces, "weight", "weight.absmax", "weight.quant_map")
        try:
            state = json.loads(bytes(stated.integers().astype(np.uint8)))
            shape, size = tuple(map(int, state["shape"])), int(state["blocksize"])
        except (ValueError, KeyError, TypeError) as error:
            raise self.fault(module, f"{_STATE}… is no state of bitsandbytes: {one_line(error)}") from error
        if len(shape) != 2 or size < 1 or min(shape) < 1:
            raise self.fault(module, f"its state says shape {list(shape)} in blocks of {size}; the file is damaged")
        count = prod(shape)
        blocks = -(-count // size)
        if weight.dtype not in _STORAGE or prod(weight.shape) * _STORAGE[weight.dtype] != -(-count // 2):
            raise self.fault(module, f"weight is {weight.dtype} {list(weight.shape)}; {-(-count // 2)} bytes are right")
        self.check(module, "weight.quant_map", table, ("F32",), (16,))
        self.check(module, "weight.absmax", scales, ("F32", "U8"), (blocks,))
        largest = self._scales(module, pieces, scales, state)

        def dense() -> Floats:
            packed = weight.bytes()
            codes = np.stack([packed >> 4, packed & 15], -1).reshape(-1)[:count]
            values = np.pad(table.floats()[codes], (0, -count % size)).reshape(blocks, size) * largest()[:, None]
            return np.ascontiguousarray(values.reshape(-1)[:count].reshape(shape))

        return PackedMatrix((shape[0], shape[1]), dense)

    def _scales(self, module: str, pieces: Mapping[str, Piece], scales: Piece, state: Mapping[str, Any]) -> Any:
        """A function that reads each block's largest number; of nested ones through a table and scales of their own."""
        if scales.dtype == "F32":
            return scales.floats
        outer, table = self.need(module, pieces, "weight.nested_absmax", "weight.nested_quant_map")
        try:
            size, offset = int(state["nested_blocksize"]), float(state["nested_offset"])
        except (ValueError, KeyError, TypeError) as error:
            raise self.fault(module, f"its state says nothing of nested scales: {one_line(error)}") from error
        if size < 1:
            raise self.fault(module, f"nested_blocksize is {size}; a positive number is right")
        blocks = scales.shape[0]
        self.check(module, "weight.nested_quant_map", table, ("F32",), (256,))
        self.check(module, "weight.nested_absmax", outer, ("F32",), (-(-blocks // size),))

        def read() -> Floats:
            factors = outer.floats().repeat(size)[:blocks]
            values: Floats = table.floats()[scales.integers()] * factors + np.float32(offset)
            return values

        return read

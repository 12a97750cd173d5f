"""GPTQ: codes packed along the inputs, a scale and a zero point for each group of them.

Layout: AutoGPTQ and GPTQModel. Files of format `gptq` hold zero points less one, those of `gptq_v2` as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.errors import LoadError, one_line
from adaptc.ir.source_grid import SourceGrid
from adaptc.sources.quantized.packed import (
    FLOATS,
    Floats,
    Method,
    PackedMatrix,
    Piece,
    group_size,
    groups_of,
    order_by_group,
    unpacked,
    whole,
)

_FORMATS = {"gptq": 1, "gptq_v2": 0}
"""By `checkpoint_format`, what was taken from a zero point before it was packed."""

_BITS = (2, 4, 8)


@dataclass(frozen=True, slots=True)
class GptqPacking(Method):
    """GPTQ's packing.

    Attributes:
        bits: Of a code.
        group_size: Inputs that share a scale; -1 for all.
        less: What was taken from a zero point.
        reordered: Whether columns are in groups by their importance (`desc_act`), so that `g_idx` must say which.
    """

    bits: int
    group_size: int
    less: int
    reordered: bool

    @classmethod
    def of(cls, origin: str, values: Mapping[str, Any]) -> GptqPacking:
        """From a quantization config.

        Raises:
            LoadError: it is of a kind that is not read.
        """
        bits, form = whole(origin, values, "bits"), values.get("checkpoint_format", values.get("format", "gptq"))
        if bits not in _BITS:
            raise LoadError(f"{origin}: GPTQ in {bits} bits; {', '.join(map(str, _BITS))} are read")
        if not isinstance(form, str) or form not in _FORMATS or values.get("is_marlin_format"):
            raise LoadError(
                f"{origin}: GPTQ in the format {one_line(form)[:40]!r}; {' and '.join(_FORMATS)} are read: save it so"
            )
        rules = values.get("dynamic") or {}
        if not isinstance(rules, Mapping) or any(not str(rule).startswith("-:") for rule in rules):
            raise LoadError(f"{origin}: GPTQ with rules for some modules (dynamic); one form for all is right")
        group = group_size(origin, values, "group_size")
        return cls(origin, "gptq", bits, group, _FORMATS[form], bool(values.get("desc_act", False)))

    @property
    def leaves(self) -> tuple[str, ...]:
        """See `Method.leaves`."""
        return "qweight", "qzeros", "scales", "g_idx"

    def matrix(self, module: str, pieces: Mapping[str, Piece]) -> PackedMatrix | None:
        """See `Method.matrix`."""
        if "qweight" not in pieces:
            return None
        weight, zeros, scales = self.need(module, pieces, "qweight", "qzeros", "scales")
        if len(weight.shape) != 2:
            raise self.fault(module, f"qweight is {list(weight.shape)}; two dimensions are right")
        each = 32 // self.bits
        columns, rows = weight.shape[0] * each, weight.shape[1]
        groups, size = groups_of(columns, self.group_size)
        self.check(module, "qweight", weight, ("I32",), weight.shape)
        self.check(module, "scales", scales, FLOATS, (groups, rows))
        self.check(module, "qzeros", zeros, ("I32",), (groups, -(-rows // each)))
        places = pieces.get("g_idx")
        if places is not None:
            self.check(module, "g_idx", places, ("I32", "I64"), (columns,))
        elif self.reordered and groups > 1:
            raise self.fault(module, "no g_idx, which desc_act needs; fetch the model again")
        packing = _Packing(self, module, (rows, columns), size, weight, zeros, scales, places)
        return PackedMatrix((rows, columns), packing.dense, packing.grid)


@dataclass(frozen=True, slots=True)
class _Packing:
    """The pieces of one matrix, whose shapes agree."""

    method: GptqPacking
    module: str
    shape: tuple[int, int]
    group: int
    weight: Piece
    zeros: Piece
    scales: Piece
    places: Piece | None

    def codes(self) -> npt.NDArray[np.uint8]:
        return unpacked(self.weight.integers().T, self.method.bits)

    def points(self) -> npt.NDArray[np.int16]:
        """Zero points, int16 [rows, groups]."""
        bits = self.method.bits
        # GPTQModel takes the ones from whole words, so a zero point of 0 borrows from the next: it is undone likewise.
        ones = np.uint32(self.method.less * sum(1 << shift for shift in range(0, 32, bits)))
        words = np.ascontiguousarray(self.zeros.integers()).view(np.uint32) + ones
        return np.ascontiguousarray(unpacked(words.view(np.int32), bits)[:, : self.shape[0]].T.astype(np.int16))

    def group_of(self) -> npt.NDArray[np.int64] | None:
        """The group of each column; None where groups are neighbours."""
        if self.places is None:
            return None
        found, groups = self.places.integers().astype(np.int64), self.scales.shape[0]
        if found.min() < 0 or found.max() >= groups:
            wrong = int(found.min() if found.min() < 0 else found.max())
            raise self.method.fault(
                self.module, f"g_idx names group {wrong} of {groups}; the file is damaged, or group_size is wrong"
            )
        return None if np.array_equal(found, np.arange(len(found)) // self.group) else found

    def grid(self) -> SourceGrid | None:
        places, codes = self.group_of(), self.codes()
        order = None
        if places is not None:
            order = order_by_group(places, self.group)
            if order is None:
                return None
            codes = np.ascontiguousarray(codes[:, order])
        scales = np.ascontiguousarray(self.scales.floats().T)
        return SourceGrid(codes, 2**self.method.bits, self.group, scales, self.points(), order=order)

    def dense(self) -> Floats:
        grid = self.grid()
        if grid is not None:
            return grid.dense()
        places = self.group_of()
        assert places is not None
        values = self.codes().astype(np.float32)
        values -= self.points()[:, places]
        values *= self.scales.floats().T[:, places]
        return values

"""compressed-tensors: whole numbers packed in words or as int8, and float8, with scales of groups, rows or a matrix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.errors import LoadError, one_line
from adaptc.ir.source_grid import SourceGrid
from adaptc.sources.quantized.fp8 import FLOAT8, REMARK, float8_matrix
from adaptc.sources.quantized.packed import (
    FLOATS,
    Floats,
    Method,
    PackedMatrix,
    Piece,
    groups_of,
    order_by_group,
    unpacked,
)

_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")
_STRATEGIES = ("tensor", "channel", "group", "block")

ACTIVATIONS = "it was made to be run with quantized activations (input_activations); here they are floats"


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the weights of some modules are quantized.

    Attributes:
        targets: Names of modules, their class (`Linear`, `Embedding`), or `re:` and a pattern.
        bits: Of a number.
        is_float: Whether numbers are float8.
        strategy: What shares a scale: `tensor`, `channel`, `group` or `block`.
        group_size: Inputs of a group.
        block: Rows and columns of a block.
        symmetric: Whether there are no zero points.
        activations: Whether activations were meant to be quantized too.
    """

    targets: tuple[str, ...]
    bits: int
    is_float: bool
    strategy: str
    group_size: int
    block: tuple[int, int] | None
    symmetric: bool
    activations: bool

    def rank(self, module: str) -> int:
        """How closely the targets name a module: 3 by its name, 2 by a pattern, 1 by its class, 0 not at all."""
        ranks = [0]
        for target in self.targets:
            if target.startswith("re:"):
                ranks.append(2 * (re.match(target[3:], module) is not None))
            else:
                kind = "Embedding" if module.endswith("embed_tokens") else "Linear"
                ranks.append(3 if module == target or module.endswith(f".{target}") else target == kind)
        return max(ranks)


@dataclass(frozen=True, slots=True)
class CompressedTensors(Method):
    """What compressed-tensors saves.

    Attributes:
        schemes: Of its `config_groups`.
    """

    schemes: tuple[Scheme, ...]

    @classmethod
    def of(cls, origin: str, values: Mapping[str, Any]) -> CompressedTensors:
        """From a quantization config.

        Raises:
            LoadError: it is of a kind that is not read.
        """
        form = values.get("format")
        if not isinstance(form, str) or form not in _FORMATS:
            read = ", ".join(_FORMATS[:3])
            raise LoadError(f"{origin}: compressed-tensors in the format {one_line(form)[:40]}; {read} are read")
        sparsity = values.get("sparsity_config") or {}
        if isinstance(sparsity, Mapping) and sparsity.get("format", "dense") != "dense":
            raise LoadError(f"{origin}: compressed-tensors with sparse weights; dense ones are read")
        transforms = values.get("transform_config") or {}
        if isinstance(transforms, Mapping) and transforms.get("config_groups"):
            raise LoadError(f"{origin}: compressed-tensors with rotations (transform_config), which are not computed")
        groups = values.get("config_groups")
        if not isinstance(groups, Mapping) or not groups:
            raise LoadError(f"{origin}: quantization_config has no config_groups; the file is damaged")
        return cls(origin, "compressed-tensors", tuple(_scheme(origin, each) for each in groups.values()))

    @property
    def leaves(self) -> tuple[str, ...]:
        """See `Method.leaves`."""
        names = ("scale", "zero_point", "shape", "g_idx", "packed")
        return "weight", *(f"weight_{name}" for name in names)

    @property
    def remarks(self) -> tuple[str, ...]:
        """See `Method.remarks`."""
        floats = (REMARK,) if any(scheme.is_float for scheme in self.schemes) else ()
        return (*floats, ACTIVATIONS) if any(scheme.activations for scheme in self.schemes) else floats

    def matrix(self, module: str, pieces: Mapping[str, Piece]) -> PackedMatrix | None:
        """See `Method.matrix`."""
        weight = pieces.get("weight")
        packed = "weight_packed" in pieces
        if not packed and (weight is None or weight.dtype in FLOATS):
            return None
        scheme = max(self.schemes, key=lambda each: each.rank(module))
        if not scheme.rank(module):
            raise self.fault(module, "no config group is for it; the config is damaged")
        [scale] = self.need(module, pieces, "weight_scale")
        if packed:
            return self._packed(module, scheme, pieces, scale)
        assert weight is not None
        if scheme.is_float or weight.dtype == FLOAT8:
            return float8_matrix(self, module, weight, "weight_scale", scale, scheme.block)
        self.check(module, "weight", weight, ("I8",), weight.shape)
        if len(weight.shape) != 2:
            raise self.fault(module, f"weight is {list(weight.shape)}; two dimensions are right")

        def codes() -> npt.NDArray[np.uint8]:
            return (weight.integers().astype(np.int16) + 128).astype(np.uint8)

        rows, columns = weight.shape
        zero = self._zero(module, scheme, pieces)

        def zeros(groups: int) -> npt.NDArray[np.int16]:
            return self._spread(module, zero, (rows, groups), 128)

        return self._matrix(module, scheme, pieces, (rows, columns), 256, codes, zeros)

    def _packed(self, module: str, scheme: Scheme, pieces: Mapping[str, Piece], scale: Piece) -> PackedMatrix:
        words, stated = self.need(module, pieces, "weight_packed", "weight_shape")
        if scheme.bits not in (2, 4, 8) or scheme.is_float:
            raise self.fault(module, f"packed numbers of {scheme.bits} bits; 2, 4 and 8 are read")
        self.check(module, "weight_shape", stated, ("I64", "I32"), (2,))
        rows, columns = map(int, stated.integers())
        each, half = 32 // scheme.bits, 2 ** (scheme.bits - 1)
        self.check(module, "weight_packed", words, ("I32",), (rows, -(-columns // each)))

        def codes() -> npt.NDArray[np.uint8]:
            return np.ascontiguousarray(unpacked(words.integers(), scheme.bits)[:, :columns])

        zero = self._zero(module, scheme, pieces)

        def zeros(groups: int) -> npt.NDArray[np.int16]:
            if zero is None or zero.dtype != "I32" or scheme.strategy not in ("group", "channel"):
                return self._spread(module, zero, (rows, groups), half)
            self.check(module, "weight_zero_point", zero, ("I32",), (-(-rows // each), groups))
            points = unpacked(zero.integers().T, scheme.bits)[:, :rows].T  # packed along the rows
            return np.ascontiguousarray(points).astype(np.int16)

        return self._matrix(module, scheme, pieces, (rows, columns), 2**scheme.bits, codes, zeros)

    def _zero(self, module: str, scheme: Scheme, pieces: Mapping[str, Piece]) -> Piece | None:
        """The zero points, which must be there where the scheme has some."""
        if not scheme.symmetric:
            self.need(module, pieces, "weight_zero_point")
        return pieces.get("weight_zero_point")

    def _spread(self, module: str, zero: Piece | None, shape: tuple[int, int], up: int) -> npt.NDArray[np.int16]:
        """Zero points moved up as codes are, int16 [rows, groups] or [1, 1]; 0 where there are none."""
        if zero is None:
            return np.full((1, 1), up, np.int16)
        if zero.dtype not in ("I8", "U8", "I16", "I32", "I64") or prod(zero.shape) not in (1, prod(shape)):
            said = f"weight_zero_point is {zero.dtype} {list(zero.shape)}"
            raise self.fault(module, f"{said}; whole numbers {list(shape)} are right")
        values = zero.integers().astype(np.int16) + np.int16(up)
        return np.ascontiguousarray(values.reshape(1, 1) if values.size == 1 else values.reshape(shape))

    def _matrix(
        self,
        module: str,
        scheme: Scheme,
        pieces: Mapping[str, Piece],
        shape: tuple[int, int],
        levels: int,
        codes: Any,
        zeros: Any,
    ) -> PackedMatrix:
        """A matrix of whole numbers, packed or not."""
        rows, columns = shape
        scale, places = pieces["weight_scale"], pieces.get("weight_g_idx")
        if scheme.strategy == "block":
            raise self.fault(module, "whole numbers with a scale for each square; groups, channel or tensor are read")
        size = scheme.group_size if scheme.strategy == "group" else -1
        groups, size = groups_of(columns, size)
        single = scale.shape in ((), (1,), (1, 1)) and scheme.strategy == "tensor"
        self.check(module, "weight_scale", scale, FLOATS, scale.shape if single else (rows, groups))
        if places is not None:
            self.check(module, "weight_g_idx", places, ("I32", "I64"), (columns,))

        def read() -> SourceGrid | None:
            factors = np.ascontiguousarray(np.broadcast_to(scale.floats().reshape(-1, groups), (rows, groups)))
            found = None if places is None else places.integers().astype(np.int64)
            if found is None or np.array_equal(found, np.arange(columns) // size) or (found == -1).all():
                return SourceGrid(codes(), levels, size, factors, zeros(groups))
            if found.min() < 0 or found.max() >= groups:
                raise self.fault(module, f"weight_g_idx is beyond its {groups} groups; the file is damaged")
            placed = order_by_group(found, size)
            if placed is None:
                return None
            return SourceGrid(
                np.ascontiguousarray(codes()[:, placed]), levels, size, factors, zeros(groups), None, placed
            )

        def dense() -> Floats:
            grid = read()
            if grid is None:
                raise self.fault(module, "weight_g_idx has groups of several sizes, which are not read")
            return grid.dense()

        return PackedMatrix(shape, dense, read)


def _scheme(origin: str, group: Any) -> Scheme:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    targets = group.get("targets") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping) or not isinstance(targets, list):
        raise LoadError(f"{origin}: a config group without weights and targets; the file is damaged")
    bits, kind, strategy = (weights.get(key) for key in ("num_bits", "type", "strategy"))
    size = weights.get("group_size")
    if strategy is None:
        strategy = "group" if size is not None and size > 0 else "channel" if size == -1 else "tensor"
    if kind not in ("int", "float") or strategy not in _STRATEGIES or not isinstance(bits, int):
        said = f"{one_line(kind)[:20]} of {one_line(bits)[:20]} bits by {one_line(strategy)[:20]}"
        raise LoadError(
            f"{origin}: compressed-tensors weights of {said}; int or float by {', '.join(_STRATEGIES)} are read"
        )
    if kind == "float" and bits != 8:
        raise LoadError(f"{origin}: compressed-tensors floats of {bits} bits; 8 are read")
    block = weights.get("block_structure")
    if isinstance(block, str) and re.fullmatch(r"\d{1,6}x\d{1,6}", block):  # as old files have it
        block = [int(each) for each in block.split("x")]
    if strategy == "block" and not (
        isinstance(block, list) and len(block) == 2 and all(isinstance(n, int) and n > 0 for n in block)
    ):
        raise LoadError(f"{origin}: block_structure is {one_line(block)[:40]}; two numbers are right")
    if strategy == "group" and (not isinstance(size, int) or size < 1):
        raise LoadError(f"{origin}: group_size is {one_line(size)[:40]}; a positive number is right")
    pair = (block[0], block[1]) if strategy == "block" and block is not None else None
    symmetric, activations = weights.get("symmetric", True) is not False, group.get("input_activations") is not None
    names = tuple(map(str, targets))
    for name in (name for name in names if name.startswith("re:")):
        try:
            re.compile(name[3:])
        except re.error as error:
            raise LoadError(f"{origin}: target {one_line(name)[:40]} is no pattern: {error}") from error
    return Scheme(names, bits, kind == "float", strategy, size or -1, pair, symmetric, activations)

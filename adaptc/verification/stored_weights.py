"""The weights that a bundle's graphs hold, as floats, under the names that they have in the source model.

Passes join matrices (query, key and value; gate and up), cut the head in two and store codes. Here all of that is
undone, from the graphs alone: what a graph multiplies by is what is read, whatever the compiler meant to store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.ir.blocks import Blocks
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.names import is_rope_table

Floats = npt.NDArray[np.float32]

FUSED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
    ("gate_up_proj", ("gate_proj", "up_proj")),
    ("gate_up_proj", ("gate", "up")),
)
"""What `fuse_projections` calls a joined matrix, and the matrices it is joined from, in their order: attention's, a
feed-forward block's, and those of the cheap path of a skip gate."""

_KIND = re.compile(r"\.(codes|scales|zeros|fp16)$")
_ROWS = ".rows"
_INTERLEAVED = ".interleaved"


@dataclass(frozen=True, slots=True)
class Stored:
    """One weight as a graph holds it.

    Attributes:
        shape: Its shape as floats.
        bits: Bits of one value: 32 or 16 for floats, 8 or 4 for codes.
        read: Reads it, as float32.
    """

    shape: tuple[int, ...]
    bits: int
    read: Callable[[], Floats]

    def cut(self, rows: slice) -> Stored:
        """Some of its rows."""
        return Stored((rows.stop - rows.start, *self.shape[1:]), self.bits, lambda: self.read()[rows])


@dataclass(frozen=True, slots=True)
class BundleWeights:
    """All weights of a bundle's graphs.

    Attributes:
        held: By their names in the graphs, without the ends that say how they are stored. An embedding that is stored
            apart from a head of the same name ends in `.rows`.
    """

    held: Mapping[str, Stored]

    def find(self, name: str, rows: Mapping[str, int], *, looked_up: bool = False) -> Stored | None:
        """A weight of the source model; None if no graph holds it.

        Args:
            name: Its name in the source model.
            rows: Rows of all parameters of that model by name, which say where a joined matrix is cut.
            looked_up: Whether its rows are looked up, as an embedding's, and not multiplied by.
        """
        if looked_up and name + _ROWS in self.held:
            return self.held[name + _ROWS]
        return self.held.get(name) or self._joined(name) or self._cut(name, rows)

    def _joined(self, name: str) -> Stored | None:
        """A matrix that is stored in pieces, one above the other."""
        names = takewhile(self.held.__contains__, (f"{name}.{piece}" for piece in count()))
        pieces = [self.held[part] for part in names]
        if len(pieces) < 2:
            return None
        shape = (sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:])
        return Stored(
            shape, min(piece.bits for piece in pieces), lambda: np.concatenate([piece.read() for piece in pieces])
        )

    def _cut(self, name: str, rows: Mapping[str, int]) -> Stored | None:
        """A matrix that is stored joined with others."""
        module, _, leaf = name.rpartition(".")
        owner, _, own = module.rpartition(".")
        # A parameter is called after its module, as `q_proj.weight`, or by itself, as the cheap path's `gate`.
        for place, part, end in ((owner, own, f".{leaf}"), (module, leaf, "")):
            for joined, parts in FUSED:
                matrix = f"{place}.{joined}{end or '.weight'}"
                whole = self.held.get(matrix) or self._joined(matrix)
                if whole is None or part not in parts:
                    continue
                sizes = [rows.get(f"{place}.{each}{end}", 0) for each in parts]
                first = sum(sizes[: parts.index(part)])
                if sum(sizes) == whole.shape[0]:
                    return whole.cut(slice(first, first + sizes[parts.index(part)]))
        return None


def stored_weights(bundle: Bundle) -> BundleWeights:
    """Find the weights in a bundle's graphs; none is read yet.

    Args:
        bundle: An opened bundle whose graphs are ONNX files with all their weights.
    """
    held: dict[str, Stored] = {}
    for graph in bundle.manifest.graphs.values():
        held |= _weights(bundle.file(graph.file))
    return BundleWeights(held)


def _weights(file: Path) -> dict[str, Stored]:
    import onnx_ir as ir

    graph = ir.load(file).graph
    held: dict[str, Stored] = {}
    for node in graph.all_nodes():
        codes = _initial(node, {"MatMulNBits": 1, "GatherBlockQuantized": 0}.get(node.op_type))
        if codes is not None:
            held[_KIND.sub("", codes.name or "")] = _coded(node)
        if node.op_type == "QMoE":
            held |= _experts(node)
    for name, value in graph.initializers.items():
        tensor = value.const_value
        plain = tensor is not None and tensor.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        if plain and not is_rope_table(name) and not name.endswith((".scales", ".zeros")):
            stem = _KIND.sub("", name)
            held[stem.removesuffix(_INTERLEAVED)] = _plain(tensor, turned=stem.endswith(_INTERLEAVED))
    return held


def _initial(node: Any, place: int | None) -> Any:
    """The constant that a node reads at a place; None if there is none."""
    value = None if place is None else node.inputs[place]
    return value if value is not None and value.const_value is not None else None


def _plain(tensor: Any, *, turned: bool = False) -> Stored:
    bits = 8 * int(tensor.dtype.itemsize)

    def read() -> Floats:
        values = np.asarray(tensor.numpy()).astype(np.float32)
        return _halves(values) if turned else values

    return Stored(tuple(tensor.shape.numpy()), bits, read)


def _halves(rows: Floats) -> Floats:
    """Gate above up of each expert, whose rows lie in turns: [experts, rows, columns]."""
    experts, count, columns = rows.shape
    halves: Floats = rows.reshape(experts, count // 2, 2, columns).swapaxes(1, 2).reshape(rows.shape)
    return halves


def _experts(node: Any) -> dict[str, Stored]:
    """Gate and up, and down, of all experts in blocks of codes, without the neurons of zeros that fill up blocks."""
    bits, size = (node.attributes.get_int(name) for name in ("expert_weight_bits", "block_size"))
    scales = node.inputs[3].const_value.numpy()
    experts, rows, blocks = scales.shape
    neurons = rows // 2
    empty = ~scales.reshape(experts, neurons, -1).any((0, 2))
    inner = neurons - int(np.argmin(empty[::-1]))

    def read(place: int, zeros: int, columns: int) -> Floats:
        from adaptc.passes.quantize.blockwise import dequantize

        values = node.inputs[place + 1].const_value.numpy().astype(np.float32)
        flat = values.reshape(-1, values.shape[-1])
        packed = node.inputs[place].const_value.numpy().reshape(*flat.shape, -1)
        given = node.inputs[zeros]
        offsets = None if given is None else given.const_value.numpy().reshape(len(flat), -1)
        whole = dequantize(Blocks(packed, flat, offsets, columns, 8 if bits == 8 else 4, size))
        return whole.reshape(experts, -1, columns)

    def gate_up() -> Floats:
        halves = _halves(read(2, 11, width)).reshape(experts, 2, neurons, width)
        return halves[:, :, :inner].reshape(experts, 2 * inner, width)

    def down() -> Floats:
        return read(5, 12, neurons)[:, :, :inner]

    width = blocks * size
    names = [_KIND.sub("", node.inputs[place].name or "") for place in (2, 5)]
    shapes = (experts, 2 * inner, width), (experts, width, inner)
    return {name: Stored(shape, bits, each) for name, shape, each in zip(names, shapes, (gate_up, down), strict=True)}


def _coded(node: Any) -> Stored:
    """A matrix in blocks of codes, which MatMulNBits multiplies by or GatherBlockQuantized looks up."""
    first = 1 if node.op_type == "MatMulNBits" else 0
    bits, size = (node.attributes.get_int(name, default) for name, default in (("bits", 4), ("block_size", 32)))
    inputs = list(node.inputs) + [None] * 4
    codes, scales, zeros = inputs[1:4] if first else (inputs[0], inputs[2], inputs[3])
    shape = scales.const_value.shape.numpy()
    rows, blocks = (shape[0], shape[1]) if len(shape) == 2 else (node.attributes.get_int("N"), -1)
    columns = node.attributes.get_int("K", 0) or codes.const_value.shape.numpy()[1] * 8 // bits

    def read() -> Floats:
        from adaptc.passes.quantize.blockwise import dequantize

        values = scales.const_value.numpy().astype(np.float32).reshape(rows, blocks)
        packed = codes.const_value.numpy().reshape(rows, values.shape[1], -1)
        offsets = None if zeros is None else zeros.const_value.numpy().reshape(rows, -1)
        return undone(dequantize(Blocks(packed, values, offsets, columns, 8 if bits == 8 else 4, size)))

    width, undone = _of_inputs(node, columns)
    return Stored((rows, width), bits, read)


def _of_inputs(node: Any, columns: int) -> tuple[int, Callable[[Floats], Floats]]:
    """How many inputs a product has beside means of them and in whatever order, and its matrix over these inputs."""
    size, order = _prepared(node.inputs[0]) if node.op_type == "MatMulNBits" else (0, None)
    width = columns * size // (size + 1) if size else columns

    def undone(values: Floats) -> Floats:
        if size:
            values = values[:, :width] + np.repeat(values[:, width:] / size, size, 1)
        if order is not None:
            placed = np.empty_like(values)
            placed[:, order] = values
            values = placed
        return values

    return width, undone


def _prepared(value: Any) -> tuple[int, Any]:
    """Of how many inputs each a product reads the means behind them, or 0; and in which order, or None."""
    size, node = 0, value.producer()
    if node is not None and node.op_type == "Concat" and len(node.inputs) == 2:
        pool = node.inputs[1].producer()
        if pool is not None and pool.op_type == "AveragePool" and pool.inputs[0] is node.inputs[0]:
            size, node = pool.attributes["kernel_shape"].as_ints()[0], node.inputs[0].producer()
    if node is not None and node.op_type == "Gather" and node.inputs[1].const_value is not None:
        order = node.inputs[1].const_value.numpy()
        return size, order if order.ndim == 1 else None
    return size, None

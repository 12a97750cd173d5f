"""source_codes: weights are multiplied by as a quantized source holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as with_fields
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from adaptc.errors import PassError
from adaptc.ir.marks import LAYER, PATH, label
from adaptc.ir.onnx_graph import OnnxGraph, fixed, sizes
from adaptc.ir.program import Program, SourceWeights
from adaptc.ir.source_grid import SourceMatrix
from adaptc.passes.base import Pass
from adaptc.passes.match import PARTS, Projection, array, initializer, projections, replace
from adaptc.passes.quantize.quantize import describe, is_table, look_up_blocks, multiply_by_blocks, side_by_side
from adaptc.passes.quantize.source_blocks import SourceBlocks, nearest, source_blocks, stacked
from adaptc.passes.spool import Spool
from adaptc.passes.store import PROCESS, Store
from adaptc.runtime.progress import SILENT, Progress


@dataclass(frozen=True, slots=True)
class SourceCodes(Pass):
    """Store each projection with the codes that its source has, where the source is quantized.

    Before:  y = MatMul(x, Transpose(W)) [+ b]
    After:   y = MatMulNBits(x, codes, scales[, zero points, b]), codes and scales the source's own
    Or, of codes with a minimum for each block (Q4_1, Q4_K):
             y = MatMulNBits(Concat(x, AveragePool(x)), …): a column for each block multiplies the mean of its inputs
    Before:  e = Gather(E, ids)
    After:   e = GatherBlockQuantized(codes, ids, scales)

    A matrix whose codes no kernel takes (fp8, NF4, groups that are no blocks), or that the source has as floats, gets
    the nearest codes of 8 bits. Matrices that were joined and differ in form become a product each.

    Needs: ONNX level, after fuse_projections, before quantize, which stores what no source has.
    Shapes: unchanged; activations stay float32.
    Cost: the bytes that the source has, but for scales, which are float32. Offset columns are 1/32 more of them, and
        two small nodes for each input of projections.

    Attributes:
        prepared_inputs: Whether a product may read its input with the means of blocks, or in another order; else
            matrices that need it get the nearest codes of 8 bits.
        block_size: Of matrices in the nearest codes.

    Raises:
        PassError: a weight holds NaN or infinity.

    Reference: as `quantize`; AveragePool, ONNX.
    """

    name: ClassVar[str] = "source_codes"
    prepared_inputs: bool = True
    block_size: Literal[16, 32, 64, 128, 256] = 16

    def apply(self, program: Program) -> Program:
        return self.apply_with(program, PROCESS)

    def apply_with(self, program: Program, store: Store, progress: Progress = SILENT) -> Program:
        tally, spool = _Tally(), Spool(store.scratch)
        for name, graph in program.at_level(OnnxGraph).items():
            held = program.checkpoint.get(name, {})
            if not held or not any(_names(p.weight) & held.keys() for p in projections(graph.model.graph)):
                continue
            fork = graph.fork()
            fork.model.opset_imports["com.microsoft"] = 1
            _CodesWriter(fork.model.graph, held, self.prepared_inputs, self.block_size, tally, spool).write(progress)
            RemoveUnusedNodesPass()(fork.model)
            program = program.with_graph(name, fork)
        return with_fields(program, source_weights=tally.kinds()) if tally.found else program


def _names(weight: ir.Value) -> set[str]:
    return set(_parts(weight))


def _parts(weight: ir.Value) -> list[str]:
    """The source's weights that a matrix was joined from, in order."""
    return weight.metadata_props.get(PARTS, weight.name or "").split(",")


class _Stored(NamedTuple):
    """What there is to say of a matrix, as in `SourceBlocks`, without its codes."""

    form: str
    exact: bool
    error: tuple[float, float]


@dataclass(slots=True)
class _Tally:
    """What became of the source's weights, by name."""

    found: dict[str, _Stored] = field(default_factory=dict)

    def add(self, name: str, held: SourceBlocks) -> None:
        """Count a matrix."""
        self.found[name] = _Stored(held.form, held.exact, held.error)

    def kinds(self) -> dict[str, SourceWeights]:
        """The same by kind of tensor: what a name says beside the layer."""
        by_kind: dict[str, list[_Stored]] = {}
        for name, blocks in self.found.items():
            kind = LAYER.sub("", name).removeprefix(".").removesuffix(".weight")
            by_kind.setdefault(kind.rpartition("model.")[2], []).append(blocks)
        return {kind: _summed(blocks) for kind, blocks in by_kind.items()}


def _summed(found: Sequence[_Stored]) -> SourceWeights:
    error, size = (sum(each.error[place] ** 2 for each in found) ** 0.5 for place in (0, 1))
    forms = list(dict.fromkeys(each.form for each in found))
    exact = sum(each.exact for each in found)
    return SourceWeights(len(found), exact, "; ".join(forms), error / size if size else 0.0)


@dataclass(slots=True)
class _CodesWriter:
    graph: ir.Graph
    held: Mapping[str, SourceMatrix]
    prepared_inputs: bool
    block_size: int
    tally: _Tally
    spool: Spool
    inputs: dict[tuple[ir.Value, object], ir.Value] = field(default_factory=dict)

    def write(self, progress: Progress) -> None:
        found = [p for p in projections(self.graph) if _names(p.weight) <= self.held.keys()]
        tables = [n for n in self.graph if n.op_type == "Gather" and is_table(n.inputs[0], 16)]
        tables = [n for n in tables if n.inputs[0] is not None and n.inputs[0].name in self.held]
        for done, projection in enumerate(found):
            self.multiply(projection)
            progress.step(done + 1, len(found) + len(tables))
        for done, node in enumerate(tables, len(found)):
            self.look_up(node)
            progress.step(done + 1, len(found) + len(tables))

    def multiply(self, projection: Projection) -> None:
        """Multiply by the source's codes; by matrices of several forms one after another."""
        means = self.prepared_inputs and len(sizes(projection.x)) == 3
        names, whole = _parts(projection.weight), None
        groups: list[list[SourceBlocks]] = []
        for name in names:
            held = self.blocks(name, means)
            if held is None:
                whole = array(projection.weight) if whole is None else whole
                first = sum(part.blocks.rows for group in groups for part in group)
                held = self.nearest(whole[first : first + self.held[name].rows], name)
            self.tally.add(name, held)
            if groups and groups[-1][0].like(held):
                groups[-1].append(held)
            else:
                groups.append([held])
        self.emit(projection, [stacked(group) for group in groups])

    def blocks(self, name: str, means: bool) -> SourceBlocks | None:
        grid = self.held[name].read()
        if grid is None or (grid.order is not None and not self.prepared_inputs):
            return None
        try:
            return source_blocks(grid, offset_columns=means)
        except PassError as error:
            raise PassError(f"{name}: {error}") from error

    def nearest(self, matrix: npt.NDArray[np.float32], name: str) -> SourceBlocks:
        try:
            return nearest(matrix, self.block_size)
        except PassError as error:
            raise PassError(f"{name}: {error}") from error

    def emit(self, projection: Projection, parts: Sequence[SourceBlocks]) -> None:
        nodes, first = [], 0
        for index, part in enumerate(parts):
            suffix = "" if len(parts) == 1 else f".{index}"
            bias = projection.bias
            if bias is not None and suffix:
                numbers = array(bias)[first : first + part.blocks.rows]
                bias = initializer(self.graph, ir.tensor(numbers, name=f"{bias.name}{suffix}"))
            given = with_fields(projection, x=self.input(projection, part, suffix), bias=bias)
            nodes.append(multiply_by_blocks(self.graph, given, part.blocks, suffix, self.spool))
            first += part.blocks.rows
        if len(nodes) == 1:
            replace(self.graph, projection.result, nodes[0])
            return
        side_by_side(self.graph, projection, nodes, [part.blocks.rows for part in parts])

    def input(self, projection: Projection, part: SourceBlocks, suffix: str) -> ir.Value:
        """What a matrix multiplies: its input, in the matrix's order, with the means of its blocks."""
        x = projection.x
        if part.order is not None:
            key = x, part.order.tobytes()
            if key not in self.inputs:
                name = f"{projection.weight.name}{suffix}.order"
                order = initializer(self.graph, ir.tensor(part.order, name=name))
                self.inputs[key] = self.before(projection, "Gather", [x, order], {"axis": -1}, f"Gather{suffix}")
            x = self.inputs[key]
        if part.means:
            size = part.blocks.block_size
            if (x, size) not in self.inputs:
                pooling: dict[str, object] = {"kernel_shape": [size], "strides": [size]}
                means = self.before(projection, "AveragePool", [x], pooling, f"AveragePool{suffix}", 1, size)
                name = f"with_means{suffix}"
                self.inputs[x, size] = self.before(projection, "Concat", [x, means], {"axis": -1}, name, size + 1, size)
            x = self.inputs[x, size]
        return x

    def before(
        self,
        at: Projection,
        op: str,
        inputs: list[ir.Value],
        attributes: dict[str, object],
        name: str,
        times: int = 1,
        parts: int = 1,
    ) -> ir.Value:
        """A node before a product; its result is `times / parts` of the first input's width."""
        owner = label(at.matmul)
        node = ir.node(op, inputs, attributes, name=f"{owner}/{name}", metadata_props={PATH: owner})  # type: ignore[arg-type]
        describe(node, inputs[0], int(sizes(inputs[0])[-1]) * times // parts)
        self.graph.insert_before(at.matmul, node)
        return node.outputs[0]

    def look_up(self, node: ir.Node) -> None:
        """Read a table's rows from the source's codes; from the nearest of 8 bits where these have offsets."""
        table = node.inputs[0]
        assert table is not None
        held = self.blocks(table.name or "", means=False)
        columns = fixed(table)[1]
        if held is None or held.order is not None or columns % held.blocks.block_size:
            size = next(size for size in (self.block_size, 16) if columns % size == 0)
            held = nearest(array(table), size)
        if table.name not in self.tally.found:
            self.tally.add(table.name or "", held)
        look_up_blocks(self.graph, node, held.blocks, self.spool)

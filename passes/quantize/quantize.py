"""quantize: weights become blocks of 4 or 8 bits, and are multiplied as such."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_fields
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from adaptc.errors import PassError
from adaptc.ir.blocks import Bits, Blocks, nearest_blocks
from adaptc.ir.grid import search_grid
from adaptc.ir.marks import PATH, in_head, label
from adaptc.ir.onnx_graph import OnnxGraph, fixed, sizes
from adaptc.ir.onnx_ops import is_experts
from adaptc.ir.program import Program
from adaptc.ir.unread.rows import FirstRows
from adaptc.passes.base import Pass
from adaptc.passes.match import PARTS, Projection, initializer, projections, replace
from adaptc.passes.match import rows as rows_read
from adaptc.passes.quantize.blockwise import concatenate, rows_from
from adaptc.passes.quantize.experts import quantized_experts, routers
from adaptc.passes.quantize.hqq import hqq_grid
from adaptc.passes.spool import Spool
from adaptc.passes.store import PROCESS, Store
from adaptc.runtime.progress import SILENT, Progress

BITS: Mapping[str, Bits] = {"int8": 8, "int4": 4}
BlockSize = Literal[16, 32, 64, 128, 256]

FREQUENT = 8
"""One head row in this many keeps 8 bits with int4."""


def head_block(block_size: int) -> int:
    """Block size of the head's 4-bit rows: 64 or more (docs/quantization.md)."""
    return max(block_size, 64)


@dataclass(frozen=True, slots=True)
class Quantize(Pass):
    """Store each projection in blocks that share a scale and a zero point.

    Before:  y = MatMul(x, Transpose(W)) [+ b]
    After:   y = MatMulNBits(x, codes, scales, zero points[, b]), activations rounded to int8 by the kernel
    Before:  e = Gather(E, ids)
    After:   e = GatherBlockQuantized(codes, ids, scales); a tied head and embedding share their bytes

    Before:  y = Experts(x, chosen, weights, gate and up, down)
    After:   y = QMoE(x, table of weights, codes, scales, zero points, …), which reads the chosen experts' codes alone;
             routers, and matrices of one row, stay floats

    With int4, the head's first eighth of rows keeps 8 bits. Vocabularies are ordered by frequency (a token's id is
    the rank of its merge), so these rows decide most predictions: all of the head in 4 bits costs SmolLM2-135M 5.7 % of
    perplexity, this 1.4 %, and a whole head in 8 bits 8 % of decoding speed.
    Its other rows have blocks of at least 64, as the kernel is a fifth faster on these and the loss is 0.1 %.
    Codes that an earlier pass chose with calibration data are used as they are; others are chosen here, each block
    for the least squared error, or by half-quadratic quantization (`adaptc.passes.quantize.hqq`).

    Needs: ONNX level, last.
    Shapes: unchanged; activations stay float32.
    Cost: int4 in blocks of 32 reads 0.64 bytes a weight (codes, float32 scale, zero point), int8 1.125.

    Attributes:
        weights: Bits of a code.
        block_size: Neighbouring inputs that share a scale.
        rule: How codes are chosen that no pass has chosen before. Experts, an embedding's rows and codes of 8 bits are
            the nearest with each.

    Raises:
        PassError: a weight holds NaN or infinity.

    Reference: MatMulNBits and GatherBlockQuantized, onnxruntime contrib operators, com.microsoft version 1;
    `accuracy_level` 4 lets the kernel multiply int8 by int4, four times as fast as float32 on a CPU.
    """

    name: ClassVar[str] = "quantize"
    weights: Literal["int8", "int4"] = "int4"
    block_size: BlockSize = 32
    rule: Literal["nearest", "hqq"] = "nearest"

    def apply(self, program: Program) -> Program:
        return self.apply_with(program, PROCESS)

    def apply_with(self, program: Program, store: Store, progress: Progress = SILENT) -> Program:
        spool = Spool(store.scratch)
        for name, graph in program.at_level(OnnxGraph).items():
            if any(True for _ in projections(graph.model.graph)) or any(map(is_experts, graph.model.graph)):
                fork = graph.fork()
                fork.model.opset_imports["com.microsoft"] = 1
                self._rewrite(fork.model, program.blocks, spool, progress)
                program = program.with_graph(name, fork)
        return program

    def _rewrite(self, model: ir.Model, known: Mapping[str, Blocks], spool: Spool, progress: Progress) -> None:
        graph, bits = model.graph, BITS[self.weights]
        floats = routers(graph)
        mixtures = [node for node in graph if is_experts(node)]
        found = [p for p in projections(graph) if p.weight not in floats and fixed(p.weight)[0] > 1]
        tables = [n for n in graph if n.op_type == "Gather" and is_table(n.inputs[0], self.block_size)]
        told = told_of(
            [*(n.inputs[3:5] for n in mixtures), *([p.weight] for p in found), *(n.inputs[:1] for n in tables)],
            progress,
        )
        for node in mixtures:
            quantized_experts(graph, node, bits, self.block_size, known, spool)
            next(told)
        for projection in found:
            blocks = _known(projection.weight, known, bits)
            split_head = bits == 4 and in_head(projection.matmul)
            if blocks is None:
                size = head_block(self.block_size) if split_head else self.block_size
                blocks = _quantized(projection.weight, bits, size, rule=self.rule)
            frequent = fixed(projection.weight)[0] // FREQUENT if split_head else 0
            if frequent:
                wide = _quantized(projection.weight, 8, self.block_size, frequent)
                _multiply(graph, projection, (wide, rows_from(blocks, frequent)), spool)
            else:
                _multiply(graph, projection, (blocks,), spool)
            next(told)
        for node in tables:
            _look_up(graph, node, self.block_size, spool)
            next(told)
        RemoveUnusedNodesPass()(model)


def _quantized(
    weight: ir.Value, bits: Bits, block_size: int, rows: int | None = None, rule: Literal["nearest", "hqq"] = "nearest"
) -> Blocks:
    """A weight, or its first rows, in blocks; a refusal has the weight's name."""
    try:
        whole = rows_read(weight)
        part = whole if rows is None else FirstRows(whole, rows)
        search = hqq_grid if rule == "hqq" and bits == 4 else search_grid
        return nearest_blocks(part, bits, block_size, search=search)
    except PassError as error:
        name = weight.metadata_props.get(PARTS, weight.name or "").replace(",", ", ")
        raise PassError(f"{name}: {error}") from error


def is_table(value: ir.Value | None, block_size: int) -> bool:
    """An embedding: a constant float matrix, and not one of RoPE's; of whole blocks, as rows are read with padding."""
    return (
        value is not None
        and value.is_initializer()
        and value.dtype == ir.DataType.FLOAT
        and value.shape is not None
        and len(value.shape) == 2
        and fixed(value)[1] % block_size == 0
    )


def _known(weight: ir.Value, known: Mapping[str, Blocks], bits: Bits) -> Blocks | None:
    """Codes chosen earlier for this weight, or for all the parts it was fused from."""
    names = weight.metadata_props.get(PARTS, weight.name or "").split(",")
    if not all(name in known and known[name].bits == bits for name in names):
        return None
    return concatenate([known[name] for name in names])


def told_of(pieces: Sequence[Sequence[ir.Value | None]], progress: Progress) -> Iterator[None]:
    """Tell, each time it is asked for the next, that the weights of one more piece of work are done, in MiB."""
    sizes = [
        sum(v.const_value.nbytes for v in values if v is not None and v.const_value is not None) for values in pieces
    ]
    total, done = sum(sizes), 0
    progress.step(0, total >> 20, "MiB")
    for size in sizes:
        done += size
        progress.step(done >> 20, total >> 20, "MiB")
        yield


def _multiply(graph: ir.Graph, projection: Projection, parts: Sequence[Blocks], spool: Spool) -> None:
    """Multiply by blocks; by several, of which each gives some of the results, one after another."""
    if len(parts) == 1:
        replace(graph, projection.result, multiply_by_blocks(graph, projection, parts[0], "", spool))
        return
    assert projection.bias is None
    nodes = [multiply_by_blocks(graph, projection, part, f".{index}", spool) for index, part in enumerate(parts)]
    side_by_side(graph, projection, nodes, [part.rows for part in parts])


def side_by_side(graph: ir.Graph, projection: Projection, nodes: Sequence[ir.Node], rows: Sequence[int]) -> None:
    """Put new products in a projection's place, of which each gives so many of its results, one after another."""
    owner = label(projection.matmul)
    joined = ir.node("Concat", [n.outputs[0] for n in nodes], {"axis": -1}, name=f"{owner}/Concat")
    joined.metadata_props[PATH] = owner
    for node, count in zip(nodes, rows, strict=True):
        describe(node, projection.result, count)
    graph.insert_before(projection.matmul, nodes)
    replace(graph, projection.result, joined)


def describe(node: ir.Node, like: ir.Value, width: int) -> None:
    """Name a node's result after it, with the type and all but the last size of a value."""
    value = node.outputs[0]
    value.name, value.type, value.shape = node.name, like.type, ir.Shape([*sizes(like)[:-1], width])


def multiply_by_blocks(graph: ir.Graph, projection: Projection, blocks: Blocks, suffix: str, spool: Spool) -> ir.Node:
    """The node of a product with blocks, not yet in the graph; `suffix` ends the names of its constants."""
    owner = label(projection.matmul)
    inputs = [
        projection.x,
        *_constants(graph, f"{projection.weight.name}{suffix}", blocks, spool),
        None,
        projection.bias,
    ]
    while inputs[-1] is None:
        inputs.pop()
    return ir.node(
        "MatMulNBits",
        inputs,
        {
            "K": blocks.columns,
            "N": blocks.rows,
            "bits": blocks.bits,
            "block_size": blocks.block_size,
            "accuracy_level": 4,
        },
        domain="com.microsoft",
        name=f"{(projection.matmul.name or owner).replace('/MatMul', '/MatMulNBits')}{suffix}",
        metadata_props={PATH: owner},
    )


def _constants(graph: ir.Graph, name: str, blocks: Blocks, spool: Spool) -> list[ir.Value | None]:
    """Codes, scales and zero points as initializers."""
    given: dict[str, np.ndarray | None] = {
        "codes": blocks.packed,
        "scales": blocks.scales,
        "zeros": blocks.zero_points,
    }
    return [
        None if numbers is None else initializer(graph, spool.constant(numbers, f"{name}.{kind}"))
        for kind, numbers in given.items()
    ]


def _look_up(graph: ir.Graph, node: ir.Node, block_size: BlockSize, spool: Spool) -> None:
    """Read an embedding's rows from 8-bit codes: a row is read whole, so bits cost file size and no time."""
    table = node.inputs[0]
    assert table is not None
    look_up_blocks(graph, node, _quantized(table, 8, block_size), spool)


def look_up_blocks(graph: ir.Graph, node: ir.Node, blocks: Blocks, spool: Spool) -> None:
    """Read the rows that a Gather looks up from blocks; the last block of a row is full."""
    table = node.inputs[0]
    assert table is not None
    # The kernel wants rows, not blocks.
    flat = with_fields(blocks, packed=blocks.packed.reshape(blocks.rows, -1))
    codes, scales, zeros = _constants(graph, f"{table.name}.rows", flat, spool)
    gather = ir.node(
        "GatherBlockQuantized",
        [codes, node.inputs[1], scales, zeros],
        {"bits": blocks.bits, "block_size": blocks.block_size, "gather_axis": 0, "quantize_axis": 1},
        domain="com.microsoft",
        name=f"{label(node)}/GatherBlockQuantized",
        metadata_props={PATH: label(node)},
    )
    replace(graph, node.outputs[0], gather)

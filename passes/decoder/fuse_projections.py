"""fuse_projections: matrices that multiply the same input become one matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from adaptc.ir.marks import PATH, label
from adaptc.ir.onnx_graph import OnnxGraph, fixed
from adaptc.ir.program import Program
from adaptc.ir.unread.constants import UnreadConstant, rows_of
from adaptc.ir.unread.rows import Stacked
from adaptc.passes.base import Pass
from adaptc.passes.match import PART_ROWS, PARTS, Projection, initializer, parts_of, projections


@dataclass(frozen=True, slots=True)
class FuseProjections(Pass):
    """Multiply once where query, key and value (or gate and up) multiply the same input.

    Before:  q = x·Qᵀ; k = x·Kᵀ; v = x·Vᵀ; GroupQueryAttention(q, k, v, …)
    After:   GroupQueryAttention(x·[Q;K;V]ᵀ, …), which takes them packed

    Before:  g = x·Gᵀ; u = x·Uᵀ
    After:   g, u = Split(x·[G;U]ᵀ)

    One kernel launch and one pass over the activations instead of two or three; at batch 1 that is what counts.

    Needs: ONNX level, after kv_cache, before quantize.
    Shapes: unchanged.
    Cost: the weights are concatenated, not copied twice: the parts are dropped.

    Attributes:
        gate_up: Also fuse the feed-forward's gate and up projections.
    """

    name: ClassVar[str] = "fuse_projections"
    gate_up: bool = True

    def apply(self, program: Program) -> Program:
        for name, graph in program.at_level(OnnxGraph).items():
            fork = graph.fork()
            if _fuse(fork.model, self.gate_up):
                program = program.with_graph(name, fork)
        return program


def _fuse(model: ir.Model, gate_up: bool) -> bool:
    graph = model.graph
    found = {p.result: p for p in projections(graph)}
    changed = False
    for node in list(graph):
        if node.op_type == "GroupQueryAttention" and all(v in found for v in node.inputs[:3]):
            parts = [found[v] for v in node.inputs[:3] if v is not None]
            if _alike(parts):
                packed = _concatenate(graph, node, parts, "qkv_proj")
                node.replace_input_with(0, packed)
                node.replace_input_with(1, None)
                node.replace_input_with(2, None)
                changed = True
    for parts in _pairs(found.values()) if gate_up else ():
        packed = _concatenate(graph, parts[0].matmul, parts, "gate_up_proj")
        sizes = ir.node("Constant", [], {"value_ints": [fixed(p.weight)[0] for p in parts]})
        split = ir.node("Split", [packed, sizes.outputs[0]], {"axis": -1}, num_outputs=2)
        owner = label(parts[0].matmul).rpartition(".")[0]
        for new in (sizes, split):
            new.name = f"{owner}.gate_up_proj/{new.op_type}"
            new.metadata_props[PATH] = f"{owner}.gate_up_proj"
        sizes.outputs[0].name = sizes.name
        for index, (value, part) in enumerate(zip(split.outputs, parts, strict=True)):
            value.name, value.type, value.shape = f"{split.name}:{index}", part.result.type, part.result.shape
            part.result.replace_all_uses_with(value)
        graph.insert_after(packed.producer(), [sizes, split])  # type: ignore[arg-type]
        changed = True
    if changed:
        RemoveUnusedNodesPass()(model)
    return changed


def _pairs(found: Iterable[Projection]) -> list[list[Projection]]:
    """Two projections of one input and one shape in one module: a gated feed-forward."""
    by_module: dict[tuple[ir.Value, str], list[Projection]] = {}
    for projection in found:
        by_module.setdefault((projection.x, label(projection.matmul).rpartition(".")[0]), []).append(projection)
    return [parts for parts in by_module.values() if len(parts) == 2 and _alike(parts) and _same_shape(parts)]


def _same_shape(parts: Sequence[Projection]) -> bool:
    return parts[0].weight.shape == parts[1].weight.shape


def _alike(parts: Sequence[Projection]) -> bool:
    """Same input, used nowhere else, all with a bias or none."""
    return (
        len({id(p.x) for p in parts}) == 1
        and len({p.bias is None for p in parts}) == 1
        and len({id(p.weight) for p in parts}) == len(parts)
    )


def _concatenate(graph: ir.Graph, before: ir.Node, parts: Sequence[Projection], name: str) -> ir.Value:
    """One MatMul over the parts' rows, inserted before `before`; returns its result."""
    owner = label(parts[0].matmul).rpartition(".")[0]
    rows = sum(fixed(p.weight)[0] for p in parts)
    columns = fixed(parts[0].weight)[1]
    weight = initializer(graph, _joined(f"{owner}.{name}.weight", [p.weight for p in parts], (rows, columns)))
    joined = [part for p in parts for part in parts_of(p.weight)]
    weight.metadata_props[PARTS] = ",".join(part for part, _ in joined)
    weight.metadata_props[PART_ROWS] = ",".join(str(count) for _, count in joined)
    transpose = ir.node("Transpose", [weight], {"perm": [1, 0]}, name=f"{owner}.{name}/Transpose")
    matmul = ir.node("MatMul", [parts[0].x, transpose.outputs[0]], name=f"{owner}.{name}/MatMul")
    nodes = [transpose, matmul]
    if parts[0].bias is not None:
        bias = initializer(graph, _joined(f"{owner}.{name}.bias", [p.bias for p in parts if p.bias], (rows,)))
        nodes.append(ir.node("Add", [matmul.outputs[0], bias], name=f"{owner}.{name}/Add"))
    for node in nodes:
        node.metadata_props[PATH] = f"{owner}.{name}"
        node.outputs[0].name = node.name
        node.outputs[0].type = parts[0].result.type
    transpose.outputs[0].shape = ir.Shape([columns, rows])
    lead = list(parts[0].result.shape)[:-1]  # type: ignore[arg-type]
    for node in nodes[1:]:
        node.outputs[0].shape = ir.Shape([*lead, rows])
    graph.insert_before(before, nodes)
    return nodes[-1].outputs[0]


def _joined(name: str, values: Sequence[ir.Value], shape: tuple[int, ...]) -> UnreadConstant:
    """The rows of all values, put together when asked for."""
    tensors = [value.const_value for value in values if value.const_value is not None]
    dtype = values[0].dtype or ir.DataType.FLOAT
    return UnreadConstant(name, dtype, shape, lambda: Stacked([rows_of(tensor) for tensor in tensors]))

"""logits_from: compute logits only for the positions asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from adaptc.ir.marks import PATH, in_head, path_of
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Program
from adaptc.passes.base import Pass
from adaptc.runtime.bundle.names import LOGITS_FROM


@dataclass(frozen=True, slots=True)
class LogitsFrom(Pass):
    """Let the caller say from which of a step's tokens on it wants logits.

    Before:  logits = head(h)
    After:   logits = head(h[:, logits_from:])

    Generation asks for the last token only (the head is a fifth of SmolLM2's weights, and a prompt needs it once);
    scoring asks for all. One graph serves both.

    Needs: ONNX level, after lower.
    Shapes: logits_from int64[1]; logits float[batch, tokens - logits_from, vocab].
    """

    name: ClassVar[str] = "logits_from"

    def apply(self, program: Program) -> Program:
        for name, graph in program.at_level(OnnxGraph).items():
            if any(v.name == LOGITS_FROM for v in graph.model.graph.inputs):
                continue
            fork = graph.fork()
            if _slice_head(fork.model.graph):
                program = program.with_graph(name, fork)
        return program


def _slice_head(graph: ir.Graph) -> bool:
    node = next((node for node in graph if in_head(node) and node.op_type == "MatMul"), None)
    shape = node.outputs[0].shape if node is not None else None
    if node is None or node.inputs[0] is None or shape is None or len(shape) != 3:
        return False  # no decoder: a classifier's logits have no axis of tokens
    hidden = node.inputs[0]
    start = ir.Value(name=LOGITS_FROM, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
    end = ir.node("Constant", [], {"value_ints": [2**31]}, name=f"{LOGITS_FROM}/end")
    axis = ir.node("Constant", [], {"value_ints": [1]}, name=f"{LOGITS_FROM}/axis")
    cut = ir.node("Slice", [hidden, start, end.outputs[0], axis.outputs[0]], name=f"{LOGITS_FROM}/Slice")
    for new in (end, axis, cut):
        new.outputs[0].name = new.name
        new.metadata_props[PATH] = path_of(node)
    cut.outputs[0].type = hidden.type
    cut.outputs[0].shape = ir.Shape(["batch", "scored", *list(hidden.shape or ())[2:]])
    graph.inputs.append(start)
    graph.insert_before(node, [end, axis, cut])
    node.replace_input_with(0, cut.outputs[0])
    value: ir.Value | None = node.outputs[0]
    while value is not None and value.shape is not None:
        value.shape = ir.Shape(["batch", "scored", *list(value.shape)[2:]])
        users = [use.node for use in value.uses()]
        value = users[0].outputs[0] if users else None
    return True

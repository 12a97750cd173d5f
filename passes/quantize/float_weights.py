"""float_weights: keep weights as floats, in the form the CPU's kernels read fastest."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from adaptc.ir.marks import PATH, label
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.onnx_ops import is_experts
from adaptc.ir.program import Program
from adaptc.passes.base import Pass
from adaptc.passes.match import Projection, initializer, projections, replace
from adaptc.passes.narrow import narrowed
from adaptc.passes.quantize.experts import float_experts, routers
from adaptc.runtime.bundle.names import is_rope_table


@dataclass(frozen=True, slots=True)
class FloatWeights(Pass):
    """Multiply by weights as they are stored, without a transposed copy.

    Before:  y = MatMul(x, Transpose(W))
    After:   y = FusedMatMul(x, W, transB=1); with fp16, W is stored as float16 and widened when it is loaded
    Before:  y = Experts(x, chosen, weights, gate and up, down)
    After:   y = MoE(x, logarithms of a table of weights, gate and up, down) · sum of weights, which reads the chosen
             experts' matrices alone; routers stay float32

    Needs: ONNX level, last; instead of quantize.
    Shapes: unchanged; computing stays float32.
    Cost: fp16 halves the file and rounds weights to 11 bits. ONNX Runtime's CPU kernels compute in float32, so neither
        memory nor time is saved while running.

    Attributes:
        weights: How they are stored.

    Raises:
        PassError: float16 cannot hold a weight: a number beyond 65,504, or all too small. It comes as the weight is
            written.

    Reference: FusedMatMul, onnxruntime contrib operators, com.microsoft version 1.
    """

    name: ClassVar[str] = "float_weights"
    weights: Literal["fp32", "fp16"] = "fp32"

    def apply(self, program: Program) -> Program:
        for name, graph in program.at_level(OnnxGraph).items():
            if any(True for _ in projections(graph.model.graph)) or any(map(is_experts, graph.model.graph)):
                fork = graph.fork()
                fork.model.opset_imports["com.microsoft"] = 1
                floats = routers(fork.model.graph)
                for node in [node for node in fork.model.graph if is_experts(node)]:
                    float_experts(fork.model.graph, node)
                for projection in list(projections(fork.model.graph)):
                    _multiply(fork.model.graph, projection)
                RemoveUnusedNodesPass()(fork.model)
                if self.weights == "fp16":
                    _narrow(fork.model.graph, floats)
                program = program.with_graph(name, fork)
        return program


def _multiply(graph: ir.Graph, projection: Projection) -> None:
    old = projection.matmul
    node = ir.node(
        "FusedMatMul",
        [projection.x, projection.weight],
        {"transB": 1},
        domain="com.microsoft",
        name=f"{label(old)}/FusedMatMul",
        metadata_props={PATH: label(old)},
    )
    replace(graph, old.outputs[0], node)


def _narrow(graph: ir.Graph, kept: Collection[ir.Value]) -> None:
    """Store every matrix but those kept as float16, and widen it (or the rows looked up in it) again."""
    for value in list(graph.initializers.values()):
        if value.dtype != ir.DataType.FLOAT or value.shape is None or len(value.shape) < 2 or not value.uses():
            continue
        if is_rope_table(value.name) or value in kept:
            continue
        narrow = initializer(graph, _half(value))
        for user, index in [(use.node, use.idx) for use in value.uses()]:
            if user.op_type == "Gather":
                user.replace_input_with(index, narrow)
                rows = user.outputs[0]
                cast = ir.node("Cast", [rows], {"to": ir.DataType.FLOAT}, name=f"{user.name}/Cast")
                cast.metadata_props.update(user.metadata_props)
                cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), rows.shape
                graph.insert_after(user, cast)
                rows.replace_all_uses_with(cast.outputs[0])
                cast.replace_input_with(0, rows)
                rows.type, cast.outputs[0].name = ir.TensorType(ir.DataType.FLOAT16), cast.name
            else:
                widened = any(v is not None and v.name == f"{user.name}/Cast" for v in user.inputs)
                name = f"{user.name}/Cast_{index}" if widened else f"{user.name}/Cast"
                cast = ir.node("Cast", [narrow], {"to": ir.DataType.FLOAT}, name=name)
                cast.metadata_props.update(user.metadata_props)
                cast.outputs[0].type, cast.outputs[0].shape = value.type, value.shape
                cast.outputs[0].name = cast.name
                graph.insert_before(user, cast)
                user.replace_input_with(index, cast.outputs[0])
        graph.initializers.pop(value.name or "")


def _half(value: ir.Value) -> ir.LazyTensor:
    name = f"{value.name}.fp16"

    def narrow() -> ir.TensorProtocol:
        return ir.tensor(narrowed(value, np.float16, "weights: fp32, int8 or int4"), name=name)

    return ir.LazyTensor(narrow, dtype=ir.DataType.FLOAT16, shape=value.shape or ir.Shape([]), name=name)

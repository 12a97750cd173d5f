"""What TensorRT can build, as rules that name the node before its builder fails.

Sources: the parsers' operator lists (TensorRT 8.6, TensorRT-RTX 1.7.1), and builds that were tried (docs/tensorrt.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from adaptc.errors import PassError
from adaptc.ir.marks import label
from adaptc.ir.onnx_ops import is_experts, is_skip

OPERATORS = frozenset(
    (
        *(
            "Abs",
            "AveragePool",
            "Clip",
            "Conv",
            "Floor",
            "GlobalAveragePool",
            "HardSigmoid",
            "LeakyRelu",
            "MaxPool",
            "Pad",
        ),
        *("Add", "And", "Cast", "Concat", "Constant", "ConstantOfShape", "Cos", "Div", "Equal", "Erf", "Exp", "Expand"),
        *("Flatten", "Gather", "Gemm", "Greater", "GreaterOrEqual", "Identity", "If", "Less", "LessOrEqual", "Log"),
        *("MatMul", "Max", "Min", "Mul", "Neg", "Not", "Or", "Pow", "Range", "Reciprocal", "ReduceMax", "ReduceMean"),
        *("ReduceMin", "ReduceSum", "Relu", "Reshape", "Shape", "Sigmoid", "Sin", "Slice", "Softmax", "Softplus"),
        *("Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where"),
    )
)
"""Operators of opset 17 that both flavours build."""

TYPES = frozenset(
    (
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.BOOL,
    )
)
"""Types of tensors; 8.6 narrows int64 to int32."""


def check(model: ir.Model) -> None:
    """Refuse a graph that TensorRT would not build.

    Raises:
        PassError: the first node that breaks a rule, and the rule.
    """
    opset = model.opset_imports.get("", 0)
    if opset > 17:
        raise PassError(f"opset {opset}; TensorRT 8.6 reads up to 17")
    if mixture := next(filter(is_experts, model.graph), None):
        raise PassError(f"{label(mixture)}: TensorRT has no form of experts; backend: onnxruntime has")
    for node in model.graph:
        if not is_skip(node):  # the runtime decides: a partition ends before it
            _check_node(node, inside=None)


def _check_node(node: ir.Node, inside: ir.Node | None) -> None:
    where = label(node)
    if node.domain not in ("", "ai.onnx"):
        raise PassError(f"{where}: {node.domain}.{node.op_type}; only ONNX's own operators are built")
    if node.op_type not in OPERATORS:
        raise PassError(f"{where}: {node.op_type}; TensorRT has no such operator at opset 17, it must be written out")
    for value in node.outputs:
        if value.dtype is not None and value.dtype not in TYPES:
            raise PassError(
                f"{where}: {node.op_type} gives {value.dtype.name.lower()}; float, half, int or bool is right"
            )
    if node.op_type == "Shape" and {"start", "end"} & set(node.attributes):
        raise PassError(f"{where}: Shape with start and end; 8.6 ignores them: take the whole and gather from it")
    if node.op_type == "If":
        _check_if(node, inside)


def _check_if(node: ir.Node, inside: ir.Node | None) -> None:
    where = label(node)
    if inside is not None:
        raise PassError(f"{where}: an If inside that of {label(inside)}; nested ones fail with sizes known at run time")
    condition = node.inputs[0].producer() if node.inputs[0] is not None else None
    if condition is not None and condition.op_type == "Gather":
        raise PassError(f"{where}: its condition is taken out of a vector, which stops the device; one scalar a gate")
    sides = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for mine, other in zip(sides[0].outputs, sides[1].outputs, strict=True):
        if mine.dtype != other.dtype:
            raise PassError(f"{where}: branches give {mine.dtype} and {other.dtype}; one type is right")
        if mine.shape is not None and other.shape is not None and len(mine.shape) != len(other.shape):
            raise PassError(f"{where}: branches give {len(mine.shape)} and {len(other.shape)} axes; one rank is right")
    for inner in _nodes(sides):
        _check_node(inner, inside=node)


def _nodes(graphs: list[ir.Graph]) -> Iterator[ir.Node]:
    for graph in graphs:
        yield from graph

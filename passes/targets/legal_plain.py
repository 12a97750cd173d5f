"""Graphs that continue no sequence (encoders, what joins their features) in operators that every TensorRT builds."""

from __future__ import annotations

import math

import onnx_ir as ir

from adaptc.passes.emit import FLOAT, Emitter
from adaptc.passes.targets.legal_weights import HALVES, halved

PRODUCTS = frozenset(("MatMul", "Gemm", "Conv"))
"""Operators that are computed in half precision."""


def write_out(graph: ir.Graph, half: str) -> None:
    """Write attention and norms in plain operators, and compute products in half precision.

    Args:
        graph: Changed in place.
        half: "fp16", "bf16".
    """
    for node in list(graph):
        if node.op_type in PRODUCTS and node.outputs[0].dtype == FLOAT:
            _product(graph, node, half)
        elif node.op_type == "Attention":
            _attention(graph, node, HALVES[half])
        elif node.op_type == "LayerNormalization" and node.attributes.get_int("axis", -1) == -1:
            layer_norm(graph, node)


def _product(graph: ir.Graph, node: ir.Node, half: str) -> None:
    """The same operator over half precision; its result is float32 again."""
    emit = Emitter(graph, node)
    given = [
        value
        if value is None
        else halved(graph, value, half)
        if value.is_initializer()
        else emit.cast(value, HALVES[half])
        for value in node.inputs
    ]
    numbers = {name: attr.value for name, attr in node.attributes.items()}
    shape = node.outputs[0].shape
    emit.replace(emit.cast(emit.call(node.op_type, *given, dtype=HALVES[half], **numbers), FLOAT))
    node.outputs[0].shape = shape


def _attention(graph: ir.Graph, node: ir.Node, half: ir.DataType) -> None:
    """softmax(q·kᵀ·scale + mask)·v of [batch, heads, tokens, width]; other forms are left, and refused by `check`."""
    query, key, value, mask, *rest = [*node.inputs, None][: max(4, len(node.inputs))]
    numbers = {name: attr.value for name, attr in node.attributes.items()}
    plain = not numbers.get("is_causal") and not numbers.get("softcap") and not any(rest) and len(node.outputs) == 1
    if not plain or query is None or key is None or value is None or query.shape is None or len(query.shape) != 4:
        return
    emit = Emitter(graph, node)
    scale = numbers.get("scale") or 1 / math.sqrt(int(str(query.shape[3])))
    rows = emit.cast(emit.call("Mul", query, emit.constant(scale, FLOAT)), half)
    turned = emit.call("Transpose", emit.cast(key, half), perm=[0, 1, 3, 2])
    scores = emit.cast(emit.call("MatMul", rows, turned), FLOAT)
    if mask is not None and mask.dtype == ir.DataType.BOOL:
        scores = emit.call("Where", mask, scores, emit.constant(-1e30, FLOAT), dtype=FLOAT)
    elif mask is not None:
        scores = emit.call("Add", scores, mask)
    weights = emit.cast(emit.call("Softmax", scores, axis=-1), half)
    emit.replace(emit.cast(emit.call("MatMul", weights, emit.cast(value, half)), FLOAT))


def layer_norm(graph: ir.Graph, node: ir.Node) -> None:
    """(x - mean) / sqrt(variance + ε) · w + b, in float32."""
    x, weight, bias = [*node.inputs, None][:3]
    assert x is not None
    emit = Emitter(graph, node)
    centred = emit.call("Sub", x, emit.call("ReduceMean", x, axes=[-1], keepdims=1))
    variance = emit.call("ReduceMean", emit.call("Mul", centred, centred), axes=[-1], keepdims=1)
    epsilon = emit.constant(node.attributes.get_float("epsilon", 1e-5), FLOAT)
    y = emit.call("Mul", emit.call("Div", centred, emit.call("Sqrt", emit.call("Add", variance, epsilon))), weight)
    emit.replace(y if bias is None else emit.call("Add", y, bias))

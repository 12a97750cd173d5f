"""What skip gates compare: once for all gates of a graph, with as few nodes as the gates' form allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from adaptc.ir.marks import PATH
from adaptc.passes.skip_ffn.skips import Skip


def comparisons(graph: ir.Graph, gates: Sequence[Skip]) -> Mapping[ir.Value, tuple[ir.Value, ir.Value]]:
    """By logit, what is compared with what: float[batch, tokens] or [batch, tokens, 1] each.

    Gates say x·w + b: x·w is compared with threshold - b, two nodes fewer for each gate. At batch 1 a node costs some
    microseconds whatever it computes. Gates of another form are compared as they are.
    """
    products = [_product(gate.logit) for gate in gates]
    folded = [product for product in products if product is not None]
    if len(folded) < len(gates):
        return {gate.logit: (gate.logit, gate.threshold) for gate in gates}
    threshold = gates[0].threshold
    stem = threshold.name
    last = ir.node("Constant", [], {"value_ints": [-1]}, name=f"{stem}/axis")
    wide = ir.node("Unsqueeze", [threshold, last.outputs[0]], name=f"{stem}/Unsqueeze")
    biases = ir.node("Concat", [bias for _, bias in folded], {"axis": 0}, name=f"{stem}/Concat")
    levels = ir.node("Sub", [wide.outputs[0], biases.outputs[0]], name=f"{stem}/Sub")
    count = len(folded)
    split = ir.node(
        "Split", [levels.outputs[0]], {"axis": -1, "num_outputs": count}, num_outputs=count, name=f"{stem}/Split"
    )
    first = next(iter(graph))
    for node in (last, wide, biases, levels, split):
        node.metadata_props[PATH] = ""
        for index, value in enumerate(node.outputs):
            value.name, value.type = f"{node.name}:{index}", threshold.type
        graph.insert_before(first, node)
    last.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    for level, (product, _) in zip(split.outputs, folded, strict=True):
        level.shape = product.shape
    return {
        gate.logit: (product, level) for gate, (product, _), level in zip(gates, folded, split.outputs, strict=True)
    }


def _product(logit: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """x·w and b, float[batch, tokens, 1] and float[1], of a gate that says Squeeze(x·w + b, -1)."""
    squeeze = logit.producer()
    total = squeeze.inputs[0] if squeeze is not None and squeeze.op_type == "Squeeze" else None
    add = total.producer() if total is not None else None
    if add is None or add.op_type != "Add":
        return None
    for value, bias in (add.inputs, reversed(add.inputs)):
        if value is not None and bias is not None and value.shape is not None and bias.is_initializer():
            column = len(value.shape) == 3 and value.shape[2] == 1
            return (value, bias) if column and list(bias.shape or ()) == [1] else None
    return None


def describe(value: ir.Value, name: str, dtype: ir.DataType | None, shape: ir.Shape | None) -> None:
    """Give a value its name, type and shape."""
    value.name, value.shape = name, shape
    value.type = None if dtype is None else ir.TensorType(dtype)

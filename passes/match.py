"""What ONNX passes share: naming what they add, and reading a projection off a graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from adaptc.ir.marks import PATH, label
from adaptc.ir.onnx_graph import fixed
from adaptc.ir.unread.constants import rows_of
from adaptc.ir.unread.rows import Rows

PARTS = "adaptc.parts"
"""Metadata of a fused weight: names of the weights it was joined from, with commas."""

PART_ROWS = "adaptc.part_rows"
"""Metadata of a fused weight: how many rows each of these has, with commas."""


def name_new_nodes(graph: ir.Graph) -> None:
    """Name nodes that a rewrite rule left without a module path after the module of the node that feeds them."""
    taken = {node.name for node in graph.all_nodes()}
    ends = {value.name for value in graph.outputs}
    for node in graph:
        if PATH in node.metadata_props:
            continue
        consumers = [use.node for value in node.outputs for use in value.uses()]
        scale = next((v.name for v in node.inputs if v is not None and v.is_initializer()), None)
        owner = (
            scale.rpartition(".")[0] if scale else next((label(c) for c in consumers if PATH in c.metadata_props), "")
        )
        node.metadata_props[PATH] = owner
        base = name = f"{owner or 'graph'}/{node.op_type}"
        number = 1
        while name in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name)
        node.name = name
        for index, value in enumerate(node.outputs):
            if value.name not in ends:
                value.name = name if index == 0 else f"{name}:{index}"


@dataclass(frozen=True, slots=True)
class Projection:
    """x · Wᵀ + b with a constant weight.

    Attributes:
        matmul: The MatMul node.
        x: Its input, float[..., inputs].
        weight: Initializer, float[outputs, inputs].
        bias: Initializer, float[outputs], if one is added.
        result: What the rest of the graph reads.
    """

    matmul: ir.Node
    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    result: ir.Value


def projections(graph: ir.Graph) -> Iterator[Projection]:
    """Every MatMul with a transposed initializer, in order."""
    for node in graph:
        if node.op_type != "MatMul":
            continue
        x, transposed = node.inputs
        producer = transposed.producer() if transposed is not None else None
        weight = producer.inputs[0] if producer is not None and producer.op_type == "Transpose" else None
        if x is None or weight is None or not weight.is_initializer():
            continue
        users = [use.node for use in node.outputs[0].uses()]
        bias = None
        if len(users) == 1 and users[0].op_type == "Add":
            other = next((v for v in users[0].inputs if v is not node.outputs[0]), None)
            if other is not None and other.is_initializer() and other.shape is not None and len(other.shape) == 1:
                bias = other
        result = users[0].outputs[0] if bias is not None else node.outputs[0]
        yield Projection(node, x, weight, bias, result)


def parts_of(weight: ir.Value) -> tuple[tuple[str, int], ...]:
    """Names of the weights that a weight was joined from, and their rows; of one that was not, its own."""
    props = weight.metadata_props
    if PARTS not in props:
        return ((weight.name or "", fixed(weight)[0]),)
    return tuple(zip(props[PARTS].split(","), map(int, props[PART_ROWS].split(",")), strict=True))


def array(value: ir.Value) -> np.ndarray:
    """The numbers of an initializer."""
    if value.const_value is None:
        raise AssertionError(f"{value.name} is an initializer without numbers")
    return value.const_value.numpy()


def rows(value: ir.Value) -> Rows:
    """What reads an initializer's rows."""
    if value.const_value is None:
        raise AssertionError(f"{value.name} is an initializer without numbers")
    return rows_of(value.const_value)


def initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a tensor as an initializer under its own name."""
    shape = tensor.shape if isinstance(tensor.shape, ir.Shape) else ir.Shape([int(str(size)) for size in tensor.shape])
    value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def replace(graph: ir.Graph, old: ir.Value, node: ir.Node) -> None:
    """Let a new node's output stand for a value, under the same name."""
    new = node.outputs[0]
    new.type, new.shape = old.type, old.shape
    producer = old.producer()
    assert producer is not None
    graph.insert_after(producer, node)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name, new.name = f"{old.name}:before", old.name

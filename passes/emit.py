"""Add ONNX nodes to a graph, each named and typed, in the place of one that goes.

onnx_ir's Tape appends to the end of a graph and leaves results without a type; rewrites insert in the middle, and the
graph must stay valid after each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from adaptc.ir.marks import marks_of

FLOAT, INT = ir.DataType.FLOAT, ir.DataType.INT64

GEMM = "adaptc.gemm"
"""Metadata of the nodes of one GEMM with a weight, which `partition` makes a partition of its own: its name."""


class Emitter:
    """Inserts nodes before another one, under its module path.

    Attributes:
        graph: Where they go.
        before: The node they precede.
    """

    def __init__(self, graph: ir.Graph, before: ir.Node) -> None:
        self.graph = graph
        self.before = before
        self._count = 0
        self._marks = marks_of(before)

    def mark(self, key: str, value: str) -> None:
        """Give the nodes from here on metadata."""
        self._marks[key] = value

    def call(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        dtype: ir.DataType | None = None,
        shape: Sequence[int | str] | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """A node with one result.

        Args:
            op_type: In ONNX's own domain.
            *inputs: Its inputs; None leaves one out.
            dtype: Type of the result; by default that of the first input.
            shape: Shape of the result, where it is known.
            **attributes: Attributes of the node.
        """
        (result,) = self.calls(op_type, inputs, 1, dtype, **attributes)
        result.shape = None if shape is None else ir.Shape(shape)
        return result

    def calls(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: int,
        dtype: ir.DataType | None,
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """A node with several results, all of one type."""
        self._count += 1
        name = f"{self.before.name}/{op_type}_{self._count}"
        node = ir.node(op_type, list(inputs), attributes, num_outputs=outputs, name=name)
        node.metadata_props.update(self._marks)
        first = inputs[0] if inputs else None
        kind = ir.TensorType(dtype) if dtype is not None else first.type if first is not None else None
        for index, value in enumerate(node.outputs):
            value.name, value.type = name if index == 0 else f"{name}:{index}", kind
        self.graph.insert_before(self.before, node)
        return node.outputs

    def constant(self, numbers: Any, dtype: ir.DataType = INT) -> ir.Value:
        """A constant; a list is one-dimensional, a number a scalar."""
        array = np.array(numbers, dtype.numpy())
        return self.call("Constant", dtype=dtype, shape=array.shape, value=ir.tensor(array))

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value as another type; itself if it is of that type."""
        if value.dtype == dtype:
            return value
        return self.call("Cast", value, dtype=dtype, shape=_sizes(value), to=dtype)

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """One size of a value: int64[1]."""
        known = value.shape[axis] if value.shape is not None else None
        if isinstance(known, int):
            return self.constant([known])
        whole = self.call("Shape", value, dtype=INT)
        return self.call("Gather", whole, self.constant([axis]), dtype=INT, shape=[1], axis=0)

    def reshape(self, value: ir.Value, sizes: Sequence[int | ir.Value], shape: Sequence[int | str]) -> ir.Value:
        """The value with other sizes.

        Args:
            value: What is reshaped.
            sizes: Each known, -1 once, or an int64[1] that is computed.
            shape: What the result's sizes are called.
        """
        if all(isinstance(size, int) for size in sizes):
            target = self.constant(list(sizes))
        else:
            parts = [self.constant([size]) if isinstance(size, int) else size for size in sizes]
            target = self.call("Concat", *parts, dtype=INT, shape=[len(parts)], axis=0)
        return self.call("Reshape", value, target, shape=shape)

    def replace(self, value: ir.Value) -> None:
        """Let `value` stand for the first result of the node that goes, and remove that node."""
        old = self.before.outputs[0]
        value.type, value.shape = old.type, old.shape
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        self.graph.remove(self.before, safe=True)
        old.name, value.name = f"{old.name}:before", old.name


def _sizes(value: ir.Value) -> list[int | str] | None:
    return None if value.shape is None else [size if isinstance(size, int) else str(size) for size in value.shape]

"""One layer of a decoder as an ONNX graph for a GPU: weights are inputs, products and attention have half precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from adaptc.errors import PassError
from adaptc.ir.marks import label
from adaptc.ir.onnx_graph import sizes
from adaptc.ir.onnx_ops import is_skip
from adaptc.runtime.bundle.names import cache_tensor

OPSET = 20
"""Oldest with all operators that a layer has (Gelu came last); engines know older ones best."""

_IR_VERSION = 10
_CONTRIB = "com.microsoft"
_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_SHRUNK = 1 / 16
"""What weights are multiplied by whose results join the residual stream: some models have results there that half
precision could not hold."""

_STREAM = frozenset(("SimplifiedLayerNormalization", "RMSNormalization", "SkipSimplifiedLayerNormalization", "Add"))

_SAME_SHAPE = frozenset(("Reshape", "Squeeze", "Unsqueeze", "Identity"))
_PLAIN = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Tanh", "Sigmoid", "Gelu", "Split", "Concat", "Constant"),
        *("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "RMSNormalization"),
    }
)
"""Operators that stay as they are, in float32."""


@dataclass
class PieceWriter:
    """The nodes of a piece, written anew.

    Attributes:
        names: What inputs are called outside: of values that other pieces or the step give.
        same: Values for which others stand.
        reads: What each input is.
        writes: What each output is.
        products: Weights of products among the inputs, by name, and what each is multiplied by.
    """

    names: Mapping[ir.Value, str]
    same: Mapping[ir.Value, ir.Value]
    reads: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    products: dict[str, float] = field(default_factory=dict)
    _inputs: list[ir.Value] = field(default_factory=list)
    _outputs: list[ir.Value] = field(default_factory=list)
    _nodes: list[ir.Node] = field(default_factory=list)
    _made: dict[tuple[object, ir.DataType], ir.Value] = field(default_factory=dict)

    def add(self, node: ir.Node) -> None:
        """Write a node of the decoder.

        Raises:
            PassError: a prompt's graph has no such operator.
        """
        match node.op_type:
            case "MatMulNBits":
                inputs = [*node.inputs, *[None] * (6 - len(node.inputs))]
                if inputs[4] is not None:
                    raise PassError(f"{label(node)}: codes in another order; a prompt's graph has none")
                shape = node.attributes.get_int("N", 0), node.attributes.get_int("K", 0)
                self._product(node, inputs[1], shape, inputs[5])
            case "FusedMatMul":
                weight = stored(node.inputs[1])
                if weight is None or not node.attributes.get_int("transB", 0):
                    raise PassError(f"{label(node)}: a product of two values; a prompt's graph has none")
                results, columns = (int(size) for size in sizes(weight))
                self._product(node, weight, (results, columns), None)
            case "GroupQueryAttention":
                self._attention(node)
            case op if op in _SAME_SHAPE:
                self._reshape(node)
            case op if op in _PLAIN:
                self._plain(node)
            case op:
                raise PassError(f"{label(node)}: {op}; a prompt's graph has no such operator")

    def end(self, value: ir.Value, name: str, kind: ir.DataType = _FLOAT) -> None:
        """Give a value to whoever comes after."""
        made = self.value(value, kind)
        if made in self._outputs or made in self._inputs:
            made = self._node("", "Identity", [made], kind)
        self._output(made, name, value.shape)

    def model(self) -> ir.Model:
        """The piece as a graph under names that say nothing of its place."""
        for index, value in enumerate(self._inputs):
            value.name = f"in{index}"
        for index, node in enumerate(self._nodes):
            node.name = f"{index}/{node.op_type}"
            for place, value in enumerate(node.outputs):
                value.name = f"v{index}.{place}" if value.uses() or value in self._outputs else ""
        for index, value in enumerate(self._outputs):
            value.name = f"out{index}"
        graph = ir.Graph(
            self._inputs, self._outputs, nodes=self._nodes, opset_imports={"": OPSET, _CONTRIB: 1}, name="prompt"
        )
        return ir.Model(graph, ir_version=_IR_VERSION)

    # Values

    def value(self, source: ir.Value, kind: ir.DataType) -> ir.Value:
        """A value of the decoder as this piece has it, in a type."""
        source = self.same.get(source, source)
        if (source, kind) in self._made:
            return self._made[source, kind]
        other = _HALF if kind == _FLOAT else _FLOAT
        if (source, other) in self._made:
            made = self._cast(self._made[source, other], kind)
        elif source in self.names:
            given = self._input(self.names[source], _FLOAT, source.shape)
            self._made[source, _FLOAT] = given
            made = given if kind == _FLOAT else self._cast(given, kind)
        elif (weight := stored(source)) is not None:
            made = self._weight(weight, kind)
        elif (producer := source.producer()) is not None and producer.op_type in _PLAIN:
            self.add(producer)  # a constant, or a vector made of weights alone
            return self.value(source, kind)
        else:
            raise PassError(f"{source.name}: no piece of a prompt gives it")
        self._made[source, kind] = made
        return made

    def _weight(self, weight: ir.Value, kind: ir.DataType) -> ir.Value:
        tensor = weight.const_value
        assert tensor is not None
        if tensor.size == 1 or tensor.dtype.is_integer():
            content = tensor.numpy() if tensor.dtype.is_integer() else tensor.numpy().astype(kind.numpy())
            return self._constant(content)
        return self._input(weight.name or "", kind, weight.shape)

    def _input(self, name: str, kind: ir.DataType, shape: ir.Shape | None) -> ir.Value:
        found = self._made.get((name, kind))
        if found is None:
            found = ir.Value(type=ir.TensorType(kind), shape=shape)
            self.reads.append(name)
            self._inputs.append(found)
            self._made[name, kind] = found
        return found

    def _output(self, made: ir.Value, name: str, shape: ir.Shape | None) -> None:
        made.shape = shape
        self.writes.append(name)
        self._outputs.append(made)

    def _cast(self, source: ir.Value, kind: ir.DataType) -> ir.Value:
        return self._node("", "Cast", [source], kind, [ir.AttrInt64("to", int(kind))])

    def _constant(self, content: npt.NDArray[Any]) -> ir.Value:
        return self._node("", "Constant", [], None, [ir.AttrTensor("value", ir.tensor(content))])

    def _node(
        self,
        domain: str,
        op: str,
        given: Sequence[ir.Value | None],
        kind: ir.DataType | None,
        attributes: list[ir.Attr] | None = None,
    ) -> ir.Value:
        node = ir.Node(domain, op, given, attributes or [])
        if kind is not None:
            node.outputs[0].type = ir.TensorType(kind)
        self._nodes.append(node)
        return node.outputs[0]

    # Operators

    def _product(self, node: ir.Node, weight: ir.Value | None, shape: tuple[int, int], bias: ir.Value | None) -> None:
        source, name = node.inputs[0], weight.name if weight is not None else None
        assert source is not None
        assert name is not None
        given = self._input(name, _HALF, ir.Shape(shape))
        result, x = node.outputs[0], self.value(source, _HALF)
        made = self._node(_CONTRIB, "FusedMatMul", [x, given], _HALF, [ir.AttrInt64("transB", 1)])
        self.products[name] = _SHRUNK if _joins_the_stream(result) else 1.0
        self._made[result, _HALF] = made
        if self.products[name] != 1:
            back = self._constant(np.array(1 / _SHRUNK, np.float32))
            made = self._node("", "Mul", [self._cast(made, _FLOAT), back], _FLOAT)
            self._made[result, _FLOAT] = made
            del self._made[result, _HALF]
        if bias is not None:
            added = [self.value(result, _FLOAT), self.value(bias, _FLOAT)]
            self._made[result, _FLOAT] = self._node("", "Add", added, _FLOAT)
            self._made.pop((result, _HALF), None)

    def _attention(self, node: ir.Node) -> None:
        given: list[ir.Value | None] = [None if v is None else self.value(v, _HALF) for v in node.inputs[:3]]
        for value in node.inputs[3:7]:
            assert value is not None
            assert value.name is not None
            kind = _HALF if cache_tensor(value.name) is not None else ir.DataType.INT32
            given.append(self._input(value.name, kind, value.shape))
        given += [None if v is None else self.value(v, _HALF) for v in node.inputs[7:9]]
        if any(value is not None for value in node.inputs[9:]):
            raise PassError(f"{label(node)}: attention with more inputs than a prompt's graph has")
        copy = ir.Node(node.domain, node.op_type, given, list(node.attributes.values()), num_outputs=3)
        self._nodes.append(copy)
        for old, new in zip(node.outputs[:3], copy.outputs, strict=True):
            new.type = ir.TensorType(_HALF)
            self._made[old, _HALF] = new
        for old, new in zip(node.outputs[1:3], copy.outputs[1:], strict=True):
            self._output(new, old.name or "", old.shape)

    def _reshape(self, node: ir.Node) -> None:
        """Rows stay rows: what they are reshaped to is known but for how many they are."""
        source, result = node.inputs[0], node.outputs[0]
        assert source is not None
        shape = sizes(result)
        row = tuple(size for size in shape[2:] if isinstance(size, int))
        if sizes(source)[:2] != shape[:2] or len(row) + 2 != len(shape):
            raise PassError(f"{label(node)}: {node.op_type} to {list(shape)}; rows that stay rows are right")
        target = self._constant(np.array([0, 0, *row], np.int64))
        self._made[result, _FLOAT] = self._node("", "Reshape", [self.value(source, _FLOAT), target], _FLOAT)

    def _plain(self, node: ir.Node) -> None:
        given = [None if v is None else self.value(v, _FLOAT) for v in node.inputs]
        op = "SimplifiedLayerNormalization" if node.op_type == "RMSNormalization" else node.op_type
        copy = ir.Node(node.domain, op, given, list(node.attributes.values()), num_outputs=len(node.outputs))
        self._nodes.append(copy)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.type = old.type
            self._made[old, _FLOAT] = new


def _joins_the_stream(value: ir.Value) -> bool:
    """Whether a product's result is for norms and sums alone, as what layers add to the residual stream is."""
    users = [use.node for use in value.uses()]
    biased = any(node.op_type == "Add" and any(stored(each) is not None for each in node.inputs) for node in users)
    return not biased and all(node.op_type in _STREAM or is_skip(node) for node in users)


def stored(value: ir.Value | None) -> ir.Value | None:
    """The initializer behind a value that may be widened from half precision; None for what is computed."""
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Cast":
        value = producer.inputs[0]
    return value if value is not None and value.is_initializer() else None

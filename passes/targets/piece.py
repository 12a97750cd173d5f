"""A piece of a graph as a graph of its own, under names that say nothing of its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from adaptc.errors import PassError
from adaptc.ir.onnx_graph import OnnxGraph, sizes
from adaptc.runtime.bundle.manifest import TensorSpec
from adaptc.runtime.bundle.names import CACHE_POSITIONS, POSITIONS, THRESHOLD
from adaptc.runtime.bundle.partitions import Call

FREE = frozenset((POSITIONS, CACHE_POSITIONS, THRESHOLD))
"""Inputs of the whole that say where a step stands; what only they need is computed where it is used."""


@dataclass(frozen=True, slots=True)
class Shared:
    """The graphs so far, each once.

    Attributes:
        models: By name.
        count: How many of each label.
    """

    models: dict[str, ir.Model]
    count: Counter[str]

    def call(
        self,
        label: str,
        nodes: Sequence[ir.Node],
        needed: Collection[str],
        stand_ins: Mapping[ir.Value, ir.Value] | None = None,
    ) -> Call | None:
        """A call of the graph of these nodes, which is added if no earlier one is the same; None if there are none."""
        if not nodes:
            return None
        piece = Subgraph.of(nodes, needed, stand_ins or {})
        model = piece.model()
        content = OnnxGraph(model).bytes()
        for name, other in self.models.items():
            if OnnxGraph(other).bytes() == content:
                return piece.call(name)
        self.count[label] += 1
        name = label if self.count[label] == 1 else f"{label}_{self.count[label]}"
        self.models[name] = model
        return piece.call(name)


@dataclass(frozen=True, slots=True)
class Subgraph:
    """Some nodes of a graph, with what they read and what others read of them."""

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    stand_ins: Mapping[ir.Value, ir.Value]

    @classmethod
    def of(cls, nodes: Sequence[ir.Node], needed: Collection[str], stand_ins: Mapping[ir.Value, ir.Value]) -> Subgraph:
        """The piece, with the nodes of no piece that it needs."""
        inside = set(nodes)
        closed = _closed(nodes, inside, stand_ins)
        made = {value for node in closed for value in node.outputs}
        inputs: dict[ir.Value, None] = {}
        for node in closed:
            for value in node.inputs:
                source = stand_ins.get(value, value) if value is not None else None
                if source is not None and source not in made:
                    inputs[source] = None
        outputs = tuple(v for node in nodes for v in node.outputs if v.name in needed)
        return cls(tuple(closed), tuple(inputs), outputs, stand_ins)

    def call(self, graph: str) -> Call:
        """A call with this piece's values."""
        return Call(graph, tuple(v.name or "" for v in self.inputs), tuple(v.name or "" for v in self.outputs))

    def model(self) -> ir.Model:
        """The piece alone, under names that say nothing of its place."""
        new: dict[ir.Value, ir.Value] = {}
        for index, value in enumerate(self.inputs):
            new[value] = _renamed(value, f"in{index}")
        nodes = []
        for index, node in enumerate(self.nodes):
            given = [None if v is None else new[self.stand_ins.get(v, v)] for v in node.inputs]
            copy = ir.Node(
                node.domain,
                node.op_type,
                given,
                list(node.attributes.values()),
                num_outputs=len(node.outputs),
                name=f"{index}/{node.op_type}",
            )
            for place, (old, value) in enumerate(zip(node.outputs, copy.outputs, strict=True)):
                value.name, value.type, value.shape = f"v{index}.{place}", old.type, old.shape
                new[old] = value
            nodes.append(copy)
        for index, value in enumerate(self.outputs):
            new[value].name = f"out{index}"
        graph = ir.Graph(
            [new[v] for v in self.inputs],
            [new[v] for v in self.outputs],
            nodes=nodes,
            opset_imports={"": 17},
            name="partition",
        )
        return ir.Model(graph, ir_version=8)


def _closed(nodes: Sequence[ir.Node], inside: set[ir.Node], stand_ins: Mapping[ir.Value, ir.Value]) -> list[ir.Node]:
    """The nodes, each after the unassigned ones (masks, rotations, constants) that it needs, in order."""
    order: list[ir.Node] = []
    seen: set[ir.Node] = set()

    def add(node: ir.Node) -> None:
        if node in seen:
            return
        seen.add(node)
        for value in node.inputs:
            source = stand_ins.get(value, value) if value is not None else None
            producer = source.producer() if source is not None else None
            if producer is not None and (producer in inside or _is_free(producer)):
                add(producer)
        order.append(node)

    for node in nodes:
        add(node)
    return order


def _is_free(node: ir.Node) -> bool:
    """Whether a node needs nothing but constants and the step's positions."""
    todo = [node]
    while todo:
        for value in todo.pop().inputs:
            if value is None or value.is_initializer():
                continue
            producer = value.producer()
            if producer is not None:
                todo.append(producer)
            elif value.name not in FREE:
                return False
    return True


def _renamed(value: ir.Value, name: str) -> ir.Value:
    return ir.Value(name=name, type=value.type, shape=value.shape)


def specs(values: Iterable[ir.Value]) -> tuple[TensorSpec, ...]:
    """Inputs or outputs of a partition as the bundle describes them."""
    found = []
    for value in values:
        assert value.dtype is not None
        if value.shape is None:
            raise PassError(f"{value.name}: its shape is not known; every value that crosses a cut needs one")
        found.append(TensorSpec(value.name or "", str(value.dtype.numpy()), sizes(value)))
    return tuple(found)

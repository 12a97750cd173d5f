"""A graph is cut at its layers, so that equal layers are recognized and translated once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.marks import LAYER, path_of


@dataclass(frozen=True, slots=True)
class LayerSlice:
    """Consecutive nodes of a graph that are translated together.

    Attributes:
        layer: Module path of the layer they belong to, `model.layers.3`; "" outside the layers.
        nodes: In order.
        inputs: What they read of the rest: values, weights, and the owners of sizes.
        outputs: Those that the rest reads.
    """

    layer: str
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]

    @classmethod
    def of(cls, layer: str, nodes: list[fx.Node]) -> LayerSlice:
        """The slice of these nodes."""
        inside = set(nodes)
        inputs: dict[fx.Node, None] = {}
        for node in nodes:
            for source in node.all_input_nodes:
                if source not in inside:
                    inputs[source.all_input_nodes[0] if _is_size(source) else source] = None
        outputs = tuple(node for node in nodes if any(user not in inside for user in node.users))
        return cls(layer, tuple(nodes), tuple(inputs), outputs)

    def module(self) -> fx.GraphModule:
        """The slice alone; every weight is an input, so that equal slices are one and the same module."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for index, node in enumerate(self.inputs):
            copies[node] = graph.placeholder(f"input_{index}")
            copies[node].meta = {"val": node.meta["val"], "path": ""}
        for node in self.nodes:
            for source in node.all_input_nodes:
                if _is_size(source) and source not in copies:
                    copies[source] = graph.node_copy(source, copies.__getitem__)
            copies[node] = graph.node_copy(node, copies.__getitem__)
            path = path_of(node).removeprefix(self.layer).removeprefix(".")
            copies[node].meta = {**node.meta, "path": path, "nn_module_stack": {path: (path, "torch.nn.Module")}}
        graph.output(tuple(copies[node] for node in self.outputs))
        return fx.GraphModule(torch.nn.Module(), graph)

    def text(self, graph: FxGraph) -> str:
        """The slice as text, equal for slices that differ in nothing but their place and their weights' values."""
        module = self.module()
        for index, node in enumerate(module.graph.nodes):
            node.name = f"v{index}"
        return FxGraph(module, graph.dims).text()


def layer_slices(graph: fx.Graph) -> Iterator[LayerSlice]:
    """Cut a graph, in order, into what precedes the layers, each layer, and what follows them."""
    layer = ""
    nodes: list[fx.Node] = []
    for node in graph.nodes:
        if node.op != "call_function" or _is_size(node):
            continue
        match = LAYER.match(path_of(node))
        own = match.group() if match else ""
        if nodes and own != layer:
            yield LayerSlice.of(layer, nodes)
            nodes = []
        layer = own
        nodes.append(node)
    if nodes:
        yield LayerSlice.of(layer, nodes)


def _is_size(node: fx.Node) -> bool:
    return node.target is torch.ops.aten.sym_size.int

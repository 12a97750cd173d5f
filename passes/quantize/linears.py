"""The linear layers of a graph, which are what is quantized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from adaptc.ir.fx_graph import FxGraph, attribute
from adaptc.ir.operators import experts  # noqa: F401  (declares adaptc::experts)

LINEAR = torch.ops.aten.linear.default
EXPERTS = torch.ops.adaptc.experts.default


def linear_weights(graph: FxGraph) -> dict[str, tuple[int, int]]:
    """Weights of the graph's linear layers in the order they run, and their shapes (rows, columns)."""
    return {name: tuple(tensor_of(graph.module, name).shape) for name in map(weight_name, linears_of(graph))}  # type: ignore[misc]


def alone(graph: FxGraph) -> set[str]:
    """Weights that read what no other linear layer reads: attention's output, the block's second half, the head."""
    linears = linears_of(graph)
    return {weight_name(node) for node in linears if len(readers_of_same(node, linears)) == 1}


def kept_float(graph: FxGraph) -> set[str]:
    """Weights that `quantize` leaves as they are: those that choose experts, and vectors."""
    linears = set(linears_of(graph))
    found = {weight_name(node) for node in linears if len(tensor_of(graph.module, weight_name(node))) == 1}
    waiting = [each for node in graph.module.graph.nodes if node.target is EXPERTS for each in node.args[1:3]]
    while waiting:
        node = waiting.pop()
        if node in linears:
            found.add(weight_name(node))
        else:
            waiting += node.all_input_nodes
    return found


def mixtures_of(graph: FxGraph) -> dict[fx.Node, tuple[str, str]]:
    """Blocks of experts in the order they run, each with the names of its weights: gate and up, down."""
    nodes = [node for node in graph.module.graph.nodes if node.target is EXPERTS]
    return {node: (str(node.args[3].target), str(node.args[4].target)) for node in nodes}


def linears_of(graph: FxGraph) -> list[fx.Node]:
    """Linear layers whose weight is the graph's own, in the order they run."""
    nodes = [node for node in graph.module.graph.nodes if node.target is LINEAR]
    return [node for node in nodes if isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr"]


def readers_of_same(node: fx.Node, linears: Sequence[fx.Node]) -> list[str]:
    """Weights among these layers' that read what `node` reads: their Hessian is one."""
    return list(dict.fromkeys(weight_name(each) for each in linears if each.args[0] is node.args[0]))


def weight_name(linear: fx.Node) -> str:
    """The name of a linear layer's weight."""
    source = linear.args[1]
    assert isinstance(source, fx.Node)
    return str(source.target)


def bias_of(linear: fx.Node) -> Any:
    """The node of a linear layer's bias; None if it has none."""
    return linear.args[2] if len(linear.args) > 2 else None


def tensor_of(module: Any, name: str) -> torch.Tensor:
    """A module's weight or buffer by its dotted name."""
    tensor = attribute(module, name)
    assert isinstance(tensor, torch.Tensor)
    return tensor

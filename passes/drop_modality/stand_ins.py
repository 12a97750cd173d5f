"""What stands for the features of a modality that is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from adaptc.errors import PassError
from adaptc.ir.fx_graph import UNUSED, FxGraph, assign
from adaptc.ir.operators import attention  # noqa: F401  (declares adaptc::image_attention)
from adaptc.ir.operators import place as placing  # noqa: F401  (declares adaptc::place)
from adaptc.passes.drop_modality.graph import SIZE, Cut, StandIn, feature_names
from adaptc.passes.drop_modality.reshape import remeasured

Arrays = Mapping[str, torch.Tensor]


def missing_shape(cut: Cut, modality: str) -> list[int]:
    """The shape of the one parameter that stands for a modality; empty if there is none, or several."""
    parameters = cut.graph.module.meta.get(UNUSED, {})
    found = parameters.get(f"missing.{modality}")
    return [] if found is None else list(found.shape)


def learned(cut: Cut, modality: str) -> dict[fx.Node, StandIn]:
    """A parameter of the model for each feature: `missing.image`, or `missing.image.0` and so on.

    Raises:
        PassError: there is no such parameter, or it has another shape than a row of the feature.
    """
    nodes = cut.features[modality]
    names = [f"missing.{modality}"] if len(nodes) == 1 else [f"missing.{modality}.{i}" for i in range(len(nodes))]
    parameters = cut.graph.module.meta.get(UNUSED, {})
    found = {}
    for node, name in zip(nodes, names, strict=True):
        row = _row(node)
        if name not in parameters:
            raise PassError(f"stand_in: learned needs a parameter {name} of shape {row}, and the model has none")
        if not _expands(list(parameters[name].shape), row):
            raise PassError(f"stand_in: {name} is {list(parameters[name].shape)}; {modality}'s feature is {row} a row")
        assign(cut.graph.module, name, parameters[name].detach())
        found[node] = _constant(name, parameters[name])
    return found


def mean(cut: Cut, modality: str, features: Arrays) -> dict[fx.Node, StandIn]:
    """The mean of each feature over the data, kept as `stand_in.image_features`.

    Args:
        cut: The graph; the means become buffers of its module.
        modality: What is left out.
        features: By feature name, over the data: float[rows, ...].
    """
    found = {}
    for node, name in zip(cut.features[modality], feature_names(cut, modality), strict=True):
        place = f"stand_in.{name}"
        average = features[name].mean(0)
        assign(cut.graph.module, place, average)
        found[node] = _constant(place, average)
    return found


def _row(node: fx.Node) -> list[int]:
    """A feature's shape without its batch.

    Raises:
        PassError: its first size is not the batch, or another size is only known at run time.
    """
    shape = node.meta["val"].shape
    if not len(shape) or isinstance(shape[0], int) or not all(isinstance(size, int) for size in shape[1:]):
        raise PassError(f"stand_in: {node.name} has no row a request: {list(map(str, shape))}; 'empty' may do")
    return [int(size) for size in shape[1:]]


def _expands(shape: list[int], row: list[int]) -> bool:
    missing = [1] * (len(row) - len(shape))
    return len(shape) <= len(row) and all(a in (1, b) for a, b in zip([*missing, *shape], row, strict=True))


def _constant(name: str, value: torch.Tensor) -> StandIn:
    """A weight, the same for each row of the batch."""

    def make(graph: fx.Graph, node: fx.Node) -> fx.Node:
        source = next(n for n in graph.nodes if n.op == "placeholder")
        batch = graph.call_function(SIZE, (source, 0))
        batch.meta = {"val": source.meta["val"].shape[0], "path": ""}
        weight = graph.get_attr(name)
        weight.meta = {"val": torch.empty_like(value, device="meta"), "path": ""}
        expanded = graph.call_function(torch.ops.aten.expand.default, (weight, [batch, *_row(node)]))
        expanded.meta = {"val": node.meta["val"], "path": "stand_in"}
        return expanded

    return make


def empty(cut: Cut, modality: str) -> dict[fx.Node, StandIn]:
    """Nothing at all: where features are joined to others along an axis, they are left out there."""
    return dict.fromkeys(cut.features[modality], _absent)


def _absent(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A marker that `without_absent` takes out again."""
    marker = graph.call_function(absent, (node.name,))
    marker.meta = {"val": node.meta["val"], "path": ""}
    return marker


def absent(name: str) -> Any:
    """Stands in a graph, for a moment, for a value that is not there."""
    raise AssertionError(f"{name} was left in the graph")


def without_absent(graph: FxGraph) -> FxGraph:
    """The graph with what takes absent values rewritten to do without.

    `cat` and `stack` leave them out, `masked_scatter` and our own `place` (ways to put an image's embeddings between a
    text's) leave their target as it is, and attention with images is causal; what computes on nothing gives nothing.

    Raises:
        PassError: something needs the value; the message names it.
    """
    nodes = graph.module.graph
    shorter = False
    for node in list(nodes.nodes):
        gone = [n for n in node.all_input_nodes if n.target is absent]
        if not gone:
            continue
        shorter = shorter or node.target in _JOINS
        rewrite = _REWRITES.get(node.target)
        if rewrite is None:
            if node.op == "output" or len(node.all_input_nodes) > 1:
                raise PassError(f"{gone[0].args[0]}: {node.name} cannot do without it; stand_in: learned or mean can")
            node.target, node.args, node.kwargs = absent, (node.name,), {}
        else:
            rewrite(node)
    nodes.eliminate_dead_code()
    left = [n for n in nodes.nodes if n.target is absent]
    for node in reversed(left):
        nodes.erase_node(node)
    graph.module.recompile()
    return remeasured(graph) if shorter else graph


def _shorter_list(node: fx.Node) -> None:
    """`cat` or `stack` of those that are there."""
    parts: Any = node.args[0]
    kept = [part for part in parts if part.target is not absent]
    if not kept:
        node.target, node.args, node.kwargs = absent, (node.name,), {}
        return
    node.args = (kept, *node.args[1:])


def _untouched(node: fx.Node) -> None:
    """`masked_scatter` or `place` of nothing."""
    target: Any = node.args[0]
    if target.target is absent:
        raise PassError(f"{target.args[0]}: {node.name} cannot do without it")
    node.replace_all_uses_with(target)
    node.graph.erase_node(node)


def _causal(node: fx.Node) -> None:
    """Attention without an image's places."""
    query, key, value, _, *options = node.args
    node.target, node.args = torch.ops.adaptc.causal_attention.default, (query, key, value, *options)


_JOINS = {torch.ops.aten.cat.default, torch.ops.aten.stack.default}

_REWRITES: Mapping[Any, Callable[[fx.Node], None]] = {
    **dict.fromkeys(_JOINS, _shorter_list),
    torch.ops.aten.masked_scatter.default: _untouched,
    torch.ops.adaptc.place.default: _untouched,
    torch.ops.adaptc.image_attention.default: _causal,
}

"""What `drop_modality` knows of graphs: what only one modality reaches, and a graph that lives without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import fx

from adaptc.errors import PassError
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.marks import path_of

SIZE = torch.ops.aten.sym_size.int

StandIn = Callable[[fx.Graph, fx.Node], fx.Node]
"""Makes, in a new graph, what stands for a value of the old one."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A graph, cut between what each modality alone decides and the rest.

    Attributes:
        graph: The whole.
        inputs: For each modality, its placeholders.
        regions: For each modality, what only its inputs reach, its inputs included.
        features: For each modality, the values of its region that the rest reads, in order; a value without any
            computation is an input itself.
    """

    graph: FxGraph
    inputs: Mapping[str, tuple[fx.Node, ...]]
    regions: Mapping[str, frozenset[fx.Node]]
    features: Mapping[str, tuple[fx.Node, ...]]


def values(graph: fx.Graph) -> nx.DiGraph:
    """Which value is computed from which; sizes are left out: a batch is as long for one input as for another."""
    drawn = nx.DiGraph()
    for node in graph.nodes:
        if is_size(node):
            continue
        drawn.add_node(node)
        drawn.add_edges_from((source, node) for source in node.all_input_nodes if not is_size(source))
    return drawn


def is_size(node: fx.Node) -> bool:
    """Whether it is a number read off a shape, or computed from such numbers."""
    return node.op == "call_function" and not isinstance(node.meta.get("val"), torch.Tensor | tuple | list)


def cut(graph: FxGraph, modalities: Mapping[str, Sequence[str]]) -> Cut:
    """Find what only each modality reaches.

    Args:
        graph: Captured; every input belongs to one modality.
        modalities: Names of inputs by modality.

    Raises:
        PassError: an input is unknown or belongs to none or to two, or a modality's region cannot be cut out.
    """
    places = {str(n.target): n for n in graph.module.graph.nodes if n.op == "placeholder"}
    _check_inputs(modalities, tuple(places))
    drawn = values(graph.module.graph)
    inputs = {name: tuple(places[each] for each in names) for name, names in modalities.items()}
    reached = {name: nx.descendants(drawn, _joined(drawn, nodes)) for name, nodes in inputs.items()}
    drawn.remove_nodes_from([node for node in drawn if isinstance(node, str)])
    regions, features = {}, {}
    for name, nodes in inputs.items():
        others = set().union(*(found for other, found in reached.items() if other != name))
        region = frozenset(n for n in reached[name] - others if n.op != "output") | set(nodes)
        _check_convex(name, drawn, region)
        regions[name] = region
        order = [n for n in graph.module.graph.nodes if n in region]
        features[name] = tuple(n for n in order if any(u not in region for u in drawn.successors(n)))
        if not features[name]:
            raise PassError(f"modalities: {name}: nothing is computed from it; leave it out")
    return Cut(graph, inputs, regions, features)


def _check_inputs(modalities: Mapping[str, Sequence[str]], inputs: Sequence[str]) -> None:
    owners: dict[str, str] = {}
    for name, names in modalities.items():
        for each in names:
            if each not in inputs:
                raise PassError(f"modalities: {name}: no input {each!r}; the model has: {', '.join(inputs)}")
            if each in owners:
                raise PassError(f"modalities: {each}: both of {owners[each]} and of {name}; one is right")
            owners[each] = name
    left = [each for each in inputs if each not in owners]
    if left:
        raise PassError(f"modalities: {left[0]}: an input of none; each input belongs to one modality")


def _joined(drawn: nx.DiGraph, nodes: Sequence[fx.Node]) -> str:
    """One source before several nodes, so that one search finds what any of them reaches."""
    source = f"source of {nodes[0].name}"
    drawn.add_edges_from((source, node) for node in nodes)
    return source


def _check_convex(name: str, drawn: nx.DiGraph, region: frozenset[fx.Node]) -> None:
    """A region is a graph of its own only if no path leaves it and comes back."""
    outside = {user for node in region for user in drawn.successors(node) if user not in region}
    after = set(outside).union(*(nx.descendants(drawn, node) for node in outside))
    back = after & region
    if back:
        raise PassError(f"modalities: {name}: {next(iter(back)).name} needs what other modalities decide")


def narrowed(cut_: Cut, modality: str, row: Sequence[int]) -> Cut:
    """The cut with a modality's region ended at the last value of shape `row` that all it hands on comes from.

    A layer that reads only this modality's features belongs to its region, yet what stands for the features may be made
    to go through that layer too.

    Args:
        cut_: The cut.
        modality: Whose region.
        row: The shape of that value without its batch.

    Returns:
        The cut as it is if there is no such value.
    """
    region, features = cut_.regions[modality], cut_.features[modality]
    drawn = values(cut_.graph.module.graph).subgraph(region).copy()
    drawn.add_edges_from(("in", node) for node in cut_.inputs[modality])
    drawn.add_edges_from((node, "out") for node in features)
    before = nx.immediate_dominators(drawn, "in")
    node = before["out"]
    while node != "in":
        shape = node.meta["val"].shape
        if len(shape) == len(row) + 1 and list(shape[1:]) == list(row):
            kept = frozenset(nx.ancestors(drawn, node) - {"in"}) | {node}
            return Cut(cut_.graph, cut_.inputs, {**cut_.regions, modality: kept}, {**cut_.features, modality: (node,)})
        node = before[node]
    return cut_


def encoder(cut_: Cut, modality: str) -> FxGraph | None:
    """What this modality alone decides, as a graph from its inputs to its features; None if that is nothing."""
    if encoderless(cut_, modality):
        return None
    features = cut_.features[modality]
    return extract(cut_.graph, cut_.inputs[modality], features, feature_names(cut_, modality), {})


def feature_names(cut_: Cut, modality: str) -> tuple[str, ...]:
    """What a modality's features are called: `image_features`, or `image_features_0` and so on if there are several."""
    nodes = cut_.features[modality]
    if encoderless(cut_, modality):
        return tuple(str(node.target) for node in nodes)
    stem = f"{modality}_features"
    return (stem,) if len(nodes) == 1 else tuple(f"{stem}_{index}" for index in range(len(nodes)))


def encoderless(cut_: Cut, modality: str) -> bool:
    """Whether the rest reads this modality's inputs as they are."""
    return set(cut_.features[modality]) <= set(cut_.inputs[modality])


def head(cut_: Cut, kept: Sequence[str], stand_ins: Mapping[fx.Node, StandIn]) -> FxGraph:
    """The rest, from the features of the kept modalities to the graph's outputs.

    Args:
        cut_: The graph.
        kept: Modalities that stay, in order.
        stand_ins: For each feature of the others, what stands for it.
    """
    inputs = [node for name in kept for node in cut_.features[name]]
    names = [each for name in kept for each in feature_names(cut_, name)]
    outputs: Any = cut_.graph.module.graph.output_node().args[0]
    return extract(cut_.graph, inputs, outputs, cut_.graph.module.meta["outputs"], stand_ins, names)


def extract(
    graph: FxGraph,
    inputs: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
    output_names: Sequence[str],
    stand_ins: Mapping[fx.Node, StandIn],
    input_names: Sequence[str] | None = None,
) -> FxGraph:
    """A graph from some values of another to some others; weights are shared.

    Args:
        graph: Stays as it is.
        inputs: Become placeholders.
        outputs: Are returned; all they need comes from `inputs`, weights, sizes and `stand_ins`.
        output_names: One each.
        stand_ins: Makers of what stands for values that are not to be computed.
        input_names: One each; by default the placeholders' own names.

    Raises:
        PassError: an output needs an input that is not there.
    """
    ends = {*inputs, *stand_ins}
    needed: set[fx.Node] = set()
    todo = list(outputs)
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            if node not in ends:
                todo += [n for n in node.all_input_nodes if node.target is not SIZE]
    new, made = fx.Graph(), dict[fx.Node, fx.Node]()
    for node, name in zip(inputs, input_names or [str(n.target) for n in inputs], strict=True):
        made[node] = new.placeholder(name)
        made[node].meta = {"val": node.meta["val"], "path": ""}
    for node in graph.module.graph.nodes:
        if node not in needed or node in made or node.op == "output":
            continue
        if node in stand_ins:
            made[node] = stand_ins[node](new, node)
        elif node.target is SIZE:
            made[node] = _size(new, node, inputs, made)
        elif node.op == "placeholder":
            raise PassError(f"{node.target}: cannot be left out: what is computed from it has no stand-in")
        else:
            made[node] = new.node_copy(node, made.__getitem__)
            made[node].meta = {"val": node.meta.get("val"), "path": path_of(node)}
    new.output(tuple(made[node] for node in outputs))
    taken = FxGraph(graph.module, graph.dims).with_nodes(new)
    taken.module.meta["outputs"] = tuple(output_names)
    return taken


def _size(new: fx.Graph, node: fx.Node, inputs: Sequence[fx.Node], made: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """The same size, read off an input that is there."""
    wanted = str(node.meta["val"])
    for source in inputs:
        for axis, size in enumerate(source.meta["val"].shape):
            if str(size) == wanted:
                read = new.call_function(SIZE, (made[source], axis))
                read.meta = {"val": node.meta["val"], "path": ""}
                return read
    raise PassError(f"{node.name}: the size {wanted} is known from inputs only that are left out")

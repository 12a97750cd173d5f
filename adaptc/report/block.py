"""One layer of a graph as boxes and arrows: its operators at the ONNX level, its modules at the FX level."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.marks import LAYER, path_of
from adaptc.ir.onnx_graph import OnnxGraph, sizes
from adaptc.ir.stored.onnx_file import StoredGraph
from adaptc.report.drawing.layers import DECIDES, ENDS, Operator, block_picture
from adaptc.report.places import place_of
from adaptc.runtime.bundle.names import cache_tensor, is_rope_table

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import fx

    from adaptc.ir.graph import Graph
    from adaptc.ir.stored.onnx_file import StoredNode, StoredValue

    OnnxNodes = ir.Graph | StoredGraph
    Node = ir.Node | StoredNode
    Value = ir.Value | StoredValue

_TITLES = {
    "SimplifiedLayerNormalization": "RMSNorm",
    "RMSNormalization": "RMSNorm",
    "SkipSimplifiedLayerNormalization": "Add + RMSNorm",
}
"""Operators whose names are longer than they need be."""


def block_pictures(graphs: Mapping[str, Graph | StoredGraph]) -> dict[str, str]:
    """A layer of each graph that has layers, as SVG, by what it shows."""
    pictures = {}
    for name, graph in graphs.items():
        if (found := block_of(graph)) is not None:
            layer, operators = found
            pictures[f"{layer} of {name}"] = block_picture(f"{layer} of {name}", operators)
    return pictures


def block_of(graph: Graph | StoredGraph) -> tuple[str, tuple[Operator, ...]] | None:
    """A layer of a graph, one with a gate if there is any: its module path and its boxes; None without layers."""
    if isinstance(graph, OnnxGraph | StoredGraph):
        main = graph.model.graph if isinstance(graph, OnnxGraph) else graph
        layer = _chosen(path_of(node) for node in main)
        return None if layer is None else (layer, tuple(_onnx(main, layer)))
    if isinstance(graph, FxGraph):
        layer = _chosen(path_of(node) for node in graph.module.graph.nodes)
        return None if layer is None else (layer, tuple(_fx(graph, layer)))
    return None


def _chosen(paths: Iterable[str]) -> str | None:
    """The path of the layer to draw: the first with a gate, else the second, as the first is often special."""
    layers: dict[str, bool] = {}
    for path in paths:
        if match := LAYER.match(path):
            layers[match.group()] = layers.get(match.group(), False) or f"{match.group()}.skip" in path
    gated = [layer for layer, has_gate in layers.items() if has_gate]
    return next(iter(gated or list(layers)[1:2] or layers), None)


def _inside(path: str, layer: str) -> bool:
    return path == layer or path.startswith(f"{layer}.")


def _onnx(main: OnnxNodes, layer: str) -> Iterator[Operator]:
    made: dict[Value, tuple[str, ...]] = {}  # what was drawn, with the boxes that give it
    outside: dict[str, Operator] = {}
    inside: list[Operator] = []
    for node in main:
        if _inside(path_of(node), layer) and node.op_type != "Constant":
            inside += _drawn(node, layer, made, outside, f"op{len(inside)}")
    yield from outside.values()
    yield from inside
    users = {node for value in made for node in value.consumers() if node.graph is main}
    after = [node for node in main if node in users and path_of(node) and not _inside(path_of(node), layer)]
    if after:
        reads = [name for node in after for value in node.inputs if value in made for name in made[value]]
        yield Operator("out", _whose(path_of(after[0])), (), tuple(dict.fromkeys(reads)), ENDS)


def _drawn(
    node: Node, layer: str, made: dict[Value, tuple[str, ...]], outside: dict[str, Operator], name: str
) -> list[Operator]:
    """The box of a node, and those of its branches; `made` and `outside` get what others read of it."""
    branches = {key: attr.as_graph() for key, attr in node.attributes.items() if attr.type.name == "GRAPH"}
    reads: list[str] = []
    others: list[str] = []
    for value in (*node.inputs, *(value for body in branches.values() for each in body for value in each.inputs)):
        if value is None or not value.name or value.is_initializer():
            continue
        producer = value.producer()
        if value in made:
            reads += made[value]
        elif producer is None:
            others.append("KV cache" if cache_tensor(value.name) else value.name)
        elif producer.graph is not node.graph or producer.op_type == "Constant":
            continue  # made inside a branch
        elif _is_state(value):
            box = f"in {value.name}"
            outside.setdefault(box, Operator(box, _whose(path_of(producer)), (_type(value),), (), ENDS))
            made[value] = (box,)
            reads.append(box)
        else:
            others.append(value.name.partition("/")[0])
    path = path_of(node)
    lines = [path.removeprefix(layer).lstrip("."), *map(_type, node.outputs[:1]), _weights(node)]
    lines += [f"reads {', '.join(dict.fromkeys(others))}"] if others else []
    shown, inputs = tuple(line for line in lines if line), tuple(dict.fromkeys(reads))
    if not branches:
        made.update({value: (name,) for value in node.outputs if value.name})
        return [Operator(name, _TITLES.get(node.op_type, node.op_type), shown, inputs, place_of(path)[1], path)]
    boxes = [Operator(name, "skip the block?", shown, inputs, DECIDES, path)]
    ends: list[str] = []
    for key, body in sorted(branches.items(), reverse=True):
        inner, last = _branch(body, layer, name, "yes" if key.startswith("else") else "no")
        boxes += inner
        ends += last
    made.update({value: tuple(ends) for value in node.outputs if value.name})
    return boxes


def _branch(body: OnnxNodes, layer: str, name: str, answer: str) -> tuple[list[Operator], tuple[str, ...]]:
    """The boxes of one side of a branch, and those that give its result; the first ones come after the gate's."""
    made: dict[Value, tuple[str, ...]] = {}
    boxes: list[Operator] = []
    for node in body:
        if node.op_type != "Constant":
            [box] = _drawn(node, layer, made, {}, f"{name} {answer}{len(boxes)}")
            reads = tuple(read for read in box.reads if not read.startswith("in ")) or (name,)
            title = f"{answer}: {box.title}" if not boxes else box.title
            boxes.append(replace(box, reads=reads, title=title))
    ends = tuple(end for value in body.outputs if value in made for end in made[value])
    return boxes, ends or (name,)


def _is_state(value: Value) -> bool:
    """Whether a value is what one module hands to another, not a mask, a threshold or a piece of shape."""
    producer = value.producer()
    return producer is not None and bool(path_of(producer)) and value.shape is not None and len(value.shape) == 3


def _whose(path: str) -> str:
    match = LAYER.match(path)
    return f"layer {match['index']}" if match else (path.rpartition(".")[2] or "the graph")


def _type(value: Value) -> str:
    if value.dtype is None or value.shape is None:
        return ""
    dtype = {"FLOAT": "float32", "DOUBLE": "float64"}.get(value.dtype.name, value.dtype.name.lower())
    return f"{dtype} [{', '.join(map(str, sizes(value)))}]"


def _is_weight(value: Value) -> bool:
    return value.is_initializer() and not is_rope_table(value.name)


def _weights(node: Node) -> str:
    """What an operator keeps: the form of its codes, or the shape of its first constant."""
    if "bits" in node.attributes and "N" in node.attributes:
        bits, rows, columns = (node.attributes[key].as_int() for key in ("bits", "N", "K"))
        return f"int{bits} weights {rows} × {columns}"
    shapes = [sizes(value) for value in node.inputs if value is not None and _is_weight(value)]
    return f"weights {' × '.join(map(str, shapes[0]))}" if shapes and shapes[0] else ""


def _fx(graph: FxGraph, layer: str) -> Iterator[Operator]:
    """Modules rather than operators: neighbours of one module become one box."""
    inside = [node for node in graph.module.graph.nodes if node.op == "call_function" and _inside(path_of(node), layer)]
    groups = _merged(inside)
    outside: dict[str, Operator] = {}
    members: dict[int, list[fx.Node]] = {}
    for node in inside:
        members.setdefault(groups[node], []).append(node)
    found = [_module(graph, layer, group, nodes, groups, outside) for group, nodes in members.items()]
    yield from outside.values()
    yield from found
    after = [user for node in inside for user in node.users if user not in groups and user.op == "call_function"]
    if after:
        reads = [f"op{groups[source]}" for user in after for source in user.all_input_nodes if source in groups]
        yield Operator("out", _whose(path_of(after[0])), (), tuple(dict.fromkeys(reads)), ENDS)


def _module(
    graph: FxGraph,
    layer: str,
    group: int,
    nodes: Sequence[fx.Node],
    groups: Mapping[fx.Node, int],
    outside: dict[str, Operator],
) -> Operator:
    """The box of neighbouring operators of a module; `outside` gets what they read from other layers."""
    reads: list[str] = []
    weights: list[str] = []
    others: list[str] = []
    for source in (source for node in nodes for source in node.all_input_nodes):
        shape = getattr(source.meta.get("val"), "shape", ())
        if source in groups:
            reads += [f"op{groups[source]}"] if groups[source] != group else []
        elif source.op == "get_attr":
            weights.append(" × ".join(map(str, shape)))
        elif source.op == "placeholder":
            others.append(str(source.target))
        elif path_of(source) and len(shape) == 3:
            box = f"in {source.name}"
            outside.setdefault(box, Operator(box, _whose(path_of(source)), (_fx_type(graph, source),), (), ENDS))
            reads.append(box)
    path = path_of(nodes[0])
    targets = list(dict.fromkeys(str(node.target).removeprefix("aten.").partition(".")[0] for node in nodes))
    gate = any("skip" in target for target in targets)
    own = path.removeprefix(layer).lstrip(".")
    lines = [", ".join(targets) if own else "", _fx_type(graph, nodes[-1])]
    lines += [f"weights {weights[0]}"] if weights else []
    lines += [f"reads {', '.join(dict.fromkeys(others))}"] if others else []
    title = "block or cheap path?" if gate else own or " + ".join(targets)
    style = DECIDES if gate else place_of(path)[1]
    shown = tuple(line for line in lines if line)
    return Operator(f"op{group}", title, shown, tuple(dict.fromkeys(reads)), style, path)


def _fx_type(graph: FxGraph, node: fx.Node) -> str:
    value = node.meta.get("val")
    if value is None or not hasattr(value, "shape"):
        return ""
    shape = ", ".join(graph.dims.get(str(size), str(size)) for size in value.shape)
    return f"{str(value.dtype).removeprefix('torch.')} [{shape}]"


def _merged(nodes: Sequence[fx.Node]) -> Mapping[fx.Node, int]:
    """A number for each node, the same for neighbours of one module, so that no circle arises.

    A node joins the group of a source of its own module if all its other sources stand before that group's last node
    or in it: then nothing in between reads the group.
    """
    group: dict[fx.Node, int] = {}
    depends: dict[int, set[int]] = {}  # groups that a group comes after, all the way up
    for index, node in enumerate(nodes):
        sources = [source for source in node.all_input_nodes if source in group]
        before = {each for source in sources for each in (group[source], *depends[group[source]])}
        same = [group[source] for source in sources if path_of(source) == path_of(node)]
        joined = None
        for candidate in same:
            others = {group[source] for source in sources} - {candidate}
            if not any(candidate in depends[each] for each in others):
                joined = candidate
                break
        if joined is None:
            group[node] = index
            depends[index] = before
        else:
            group[node] = joined
            for each in (g for g in depends if g == joined or joined in depends[g]):
                depends[each] |= before - {each}
    return group

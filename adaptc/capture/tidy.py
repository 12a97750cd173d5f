"""Drop from an exported graph what only the exporter needs."""

from __future__ import annotations

from functools import partial

import torch
from torch import fx

from adaptc.ir.fx_graph import attribute
from adaptc.ir.marks import path_of


def tidy(module: fx.GraphModule) -> None:
    """Drop guards, assertions, casts to the type and views of the shape that a value already has, and dead masks."""
    aten = torch.ops.aten
    for node in list(module.graph.nodes):
        if node.target in ("_guards_fn", aten._assert_tensor_metadata.default):
            module.graph.erase_node(node)
        elif node.target in (
            aten.to.dtype,
            aten.to.dtype_layout,
            aten.to.device,
            aten.alias.default,
            aten.detach_.default,
        ):
            source = node.args[0]
            if source.meta["val"].dtype == node.meta["val"].dtype:
                node.replace_all_uses_with(source)
                module.graph.erase_node(node)
        elif _does_nothing(node):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif node.target is aten.copy_.default and node.args[0].op == "get_attr":
            # A buffer that is written before it is read, as LongRoPE's frequencies: what is written is read.
            node.args[0].replace_all_uses_with(node.args[1], delete_user_cb=partial(_follows, node))
            node.replace_all_uses_with(node.args[1])
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    _own_constants(module)
    _share_sizes(module.graph)
    for node in module.graph.nodes:
        node.meta = {"val": node.meta.get("val"), "path": path_of(node)}


def _does_nothing(node: fx.Node) -> bool:
    """Whether a node gives what it reads: a view of the same shape, or a dropout that is off."""
    if node.target is torch.ops.aten.view.default:
        return str(node.meta["val"].shape) == str(node.all_input_nodes[0].meta["val"].shape)
    return node.target is torch.ops.aten.dropout.default and node.args[2] is False


def _own_constants(module: fx.GraphModule) -> None:
    """Make buffers of tensors that the exporter lifted out of the code: a graph's forks share buffers."""
    for node in module.graph.nodes:
        if node.op != "get_attr":
            continue
        place, _, leaf = str(node.target).rpartition(".")
        owner = attribute(module, place) if place else module
        value = vars(owner).get(leaf)
        if isinstance(value, torch.Tensor):
            delattr(owner, leaf)
            owner.register_buffer(leaf, value)


def _follows(first: fx.Node, node: fx.Node) -> bool:
    """Whether a node comes after another."""
    return first < node


def _share_sizes(graph: fx.Graph) -> None:
    """Read each symbolic size off the first input that has it, so that the other inputs can be rewritten away."""
    first: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.sym_size.int:
            same = first.setdefault(str(node.meta["val"]), node)
            if same is node:
                node.args = _owner(graph, str(node.meta["val"]))
            else:
                node.replace_all_uses_with(same)
                graph.erase_node(node)


def _owner(graph: fx.Graph, size: str) -> tuple[fx.Node, int]:
    """Return the first input with this size, and its axis."""
    return next(
        (node, axis)
        for node in graph.nodes
        if node.op == "placeholder"
        for axis, symbol in enumerate(node.meta["val"].shape)
        if str(symbol) == size
    )

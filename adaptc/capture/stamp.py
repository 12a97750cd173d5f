"""From one exported layer of each kind to a decoder of full depth."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import fx

from adaptc.errors import LoadError
from adaptc.ir.fx_graph import assign
from adaptc.ir.marks import LAYER


def stamp(module: fx.GraphModule, kinds: list[str], stem: str = "model.layers") -> None:
    """Grow the exported layers to full depth, in place: each layer after layer 0 is a copy of its kind's example.

    Args:
        module: Exported with layer 0 and one layer of each kind after it.
        kinds: The kind of each layer of the full model.
        stem: Module path of the decoder's list of layers.

    Raises:
        LoadError: more or less than one value leaves a layer.
    """
    graph = module.graph
    layers: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        match = LAYER.match(node.meta["path"]) if node.op != "get_attr" else None
        if match and match["stem"] == stem:
            layers.setdefault(int(match["index"]), []).append(node)
    examples = {kind: layers[index + 1] for index, kind in enumerate(dict.fromkeys(kinds))}
    example_index = {kind: index + 1 for index, kind in enumerate(dict.fromkeys(kinds))}
    ends = {index: _single_output(stem, index, nodes) for index, nodes in layers.items()}
    last = ends[max(layers)]
    after = next(user for user in last.users if user not in layers[max(layers)])
    readers = list(last.users)
    hidden = ends[0]
    for index, kind in enumerate(kinds[1:], 1):
        template = example_index[kind]
        renamed: dict[fx.Node, fx.Node] = {ends[template - 1]: hidden}
        with graph.inserting_before(after):
            for node in examples[kind]:
                for source in node.all_input_nodes:
                    if source.op == "get_attr" and source not in renamed and LAYER.match(str(source.target)):
                        target = LAYER.sub(rf"\g<stem>.{index}", str(source.target))
                        renamed[source] = _attribute(module, target, source)
                renamed[node] = graph.node_copy(node, partial(_renamed, renamed))
                renamed[node].meta["path"] = LAYER.sub(rf"\g<stem>.{index}", node.meta["path"])
        hidden = renamed[ends[template]]
    for reader in readers:
        reader.replace_input_with(last, hidden)
    for index in sorted(layers, reverse=True)[:-1]:
        for node in reversed(layers[index]):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


def _renamed(names: Mapping[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
    return names.get(node, node)


def _single_output(stem: str, index: int, nodes: list[fx.Node]) -> fx.Node:
    inside = set(nodes)
    out = [node for node in nodes if any(user not in inside for user in node.users)]
    if len(out) != 1:
        raise LoadError(
            f"{stem}.{index}: {len(out)} values leave this layer; adaptc stamps layers that hand on one hidden state"
        )
    return out[0]


def _attribute(module: fx.GraphModule, target: str, like: fx.Node) -> fx.Node:
    """Return a get_attr node for a new parameter, declared with the shape of an exported one."""
    value = like.meta["val"]
    assign(module, target, torch.nn.Parameter(torch.empty(value.shape, dtype=value.dtype), requires_grad=False))
    node = module.graph.get_attr(target)
    node.meta = dict(like.meta)
    return node

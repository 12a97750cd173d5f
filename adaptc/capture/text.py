"""Pretrained model -> FX graph: `torch.export` through transformers' exporter, module paths kept.

Exporting takes about a second a layer, and the layers of a decoder are alike. So one layer of each kind is exported
(of empty weights: none is read), and the full depth is stamped from them.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import fx

from adaptc.errors import LoadError
from adaptc.ir import attention
from adaptc.ir.graph import FxGraph, assign
from adaptc.ir.marks import LAYER, path_of
from adaptc.runtime.bundle.names import INPUT_IDS, LOGITS, POSITION_IDS

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def capture(config: PretrainedConfig, weights: Mapping[str, torch.Tensor]) -> FxGraph:
    """Capture a decoder as a pure function of the whole sequence.

    Args:
        config: What transformers says of the model.
        weights: Parameters by their transformers names; they are shared, not copied.

    Returns:
        FxGraph(input_ids int64[batch, tokens], position_ids int64[batch, tokens]) -> logits[batch, tokens, vocab].

    Raises:
        LoadError: a layer cannot be stamped, or a weight is missing or of another shape.
    """
    kinds = layer_kinds(config)
    module, ties = _export(config, [kinds[0], *dict.fromkeys(kinds)])
    tidy(module)
    stamp(module, kinds)
    attach(module, weights, ties)
    # A fork is a plain module: the exporter's input checks and guards stay behind.
    return FxGraph(module, _dims(module)).fork()


def _dims(module: fx.GraphModule) -> dict[str, str]:
    """The exporter numbers its symbols (s44); we name them."""
    ids = next(node for node in module.graph.nodes if node.op == "placeholder")
    return {str(size): name for size, name in zip(ids.meta["val"].shape, ("batch", "tokens"), strict=True)}


def layer_kinds(config: PretrainedConfig) -> list[str]:
    """The kind of each decoder layer: layers of one kind differ in nothing but their weights."""
    types = getattr(config, "layer_types", None)
    return list(types) if types else ["layer"] * int(config.num_hidden_layers)


def shallow(config: PretrainedConfig, kinds: list[str]) -> PretrainedConfig:
    """The config with only these layers."""
    small = copy.deepcopy(config)
    small.num_hidden_layers = len(kinds)
    if getattr(small, "layer_types", None):
        small.layer_types = list(kinds)
    return small


def tied(model: torch.nn.Module) -> dict[str, str]:
    """Which parameters are one: tied name -> first name."""
    first: dict[int, str] = {}
    ties = {name: first.setdefault(id(tensor), name) for name, tensor in model.named_parameters(remove_duplicate=False)}
    return {name: to for name, to in ties.items() if name != to}


def _export(config: PretrainedConfig, kinds: list[str]) -> tuple[fx.GraphModule, dict[str, str]]:
    """Export a model of only these layers; also say which parameters are one (tied name -> first name)."""
    from transformers import AutoModelForCausalLM, initialization
    from transformers.exporters import DynamoConfig, DynamoExporter

    attention.register()
    small = shallow(config, kinds)
    # Parameters are allocated but never written, so their pages never exist; computed buffers are real.
    with initialization.no_init_weights():
        model = AutoModelForCausalLM.from_config(small, attn_implementation=attention.NAME, dtype=torch.float32).eval()
    model.tie_weights()  # left out when weights are not initialized
    ties = tied(model)
    ids = torch.zeros(2, 7, dtype=torch.int64)
    # 2 and 7: sizes of 0 and 1 would be taken for constants.
    free = {0: torch.export.Dim("batch", min=1, max=4096), 1: torch.export.Dim("tokens", min=1, max=1 << 20)}
    logging.getLogger("transformers.exporters").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = DynamoExporter().export(
            model,
            {INPUT_IDS: ids, POSITION_IDS: ids.clone(), "use_cache": False},
            DynamoConfig(dynamic=False, dynamic_shapes={INPUT_IDS: free, POSITION_IDS: free}),
        )
        module = exported.program.module()
    # The exporter packs inputs and outputs as keyword trees; a graph takes tensors in order and returns a tuple.
    module.graph.set_codegen(fx.graph.CodeGen())
    module.meta["outputs"] = (LOGITS,)
    return module, ties


def tidy(module: fx.GraphModule) -> None:
    """Drop what export leaves behind: guards, assertions, casts to the type a value already has, dead masks."""
    aten = torch.ops.aten
    for node in list(module.graph.nodes):
        if node.target in ("_guards_fn", aten._assert_tensor_metadata.default):
            module.graph.erase_node(node)
        elif node.target in (aten.to.dtype, aten.to.device, aten.alias.default, aten.detach_.default):
            source = node.args[0]
            if source.meta["val"].dtype == node.meta["val"].dtype:
                node.replace_all_uses_with(source)
                module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    _share_sizes(module.graph)
    for node in module.graph.nodes:
        node.meta = {"val": node.meta.get("val"), "path": path_of(node)}


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
    """The first input with this size, and its axis."""
    return next(
        (node, axis)
        for node in graph.nodes
        if node.op == "placeholder"
        for axis, found in enumerate(node.meta["val"].shape)
        if str(found) == size
    )


def stamp(module: fx.GraphModule, kinds: list[str], decoder: str = "model") -> None:
    """Grow the exported layers to full depth: layer 0 stays, each other layer is a copy of its kind's example.

    Args:
        module: Exported with layer 0 and one layer of each kind after it.
        kinds: Of all layers.
        decoder: Module path of what has the layers.
    """
    graph = module.graph
    regions: dict[int, list[fx.Node]] = {}
    stem = f"{decoder}.layers"
    for node in graph.nodes:
        match = LAYER.match(node.meta["path"]) if node.op != "get_attr" else None
        if match and match["stem"] == stem:
            regions.setdefault(int(match["index"]), []).append(node)
    examples = {kind: regions[index + 1] for index, kind in enumerate(dict.fromkeys(kinds))}
    example_index = {kind: index + 1 for index, kind in enumerate(dict.fromkeys(kinds))}
    ends = {index: _single_output(stem, index, region) for index, region in regions.items()}
    last = ends[max(regions)]
    after = next(user for user in last.users if user not in regions[max(regions)])
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
    for index in sorted(regions, reverse=True)[:-1]:
        for node in reversed(regions[index]):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


def _renamed(names: Mapping[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
    return names.get(node, node)


def _single_output(stem: str, index: int, region: list[fx.Node]) -> fx.Node:
    inside = set(region)
    out = [node for node in region if any(user not in inside for user in node.users)]
    if len(out) != 1:
        raise LoadError(
            f"{stem}.{index}: {len(out)} values leave this layer; adaptc stamps layers that hand on one hidden state"
        )
    return out[0]


def _attribute(module: fx.GraphModule, target: str, like: fx.Node) -> fx.Node:
    """A get_attr node for a new parameter, declared with the shape of an exported one."""
    value = like.meta["val"]
    assign(module, target, torch.nn.Parameter(torch.empty(value.shape, dtype=value.dtype), requires_grad=False))
    node = module.graph.get_attr(target)
    node.meta = dict(like.meta)
    return node


def attach(module: fx.GraphModule, weights: Mapping[str, torch.Tensor], ties: Mapping[str, str]) -> None:
    """Put the real weights where the exported ones stood; computed buffers (RoPE frequencies) are kept.

    A tied weight goes by one name only, so that it is stored and quantized once.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for node in module.graph.nodes:
        if node.op != "get_attr" or node.target not in parameters:
            continue
        declared, node.target = parameters[node.target], ties.get(node.target, node.target)
        if node.target not in weights:
            raise LoadError(f"{node.target}: not among the model's {len(weights)} weights; the file may be incomplete")
        real = weights[node.target]
        if real.shape != declared.shape:
            raise LoadError(
                f"{node.target}: shape {list(real.shape)}; the configuration asks for {list(declared.shape)}"
            )
        assign(module, node.target, torch.nn.Parameter(real.to(declared.dtype), requires_grad=False))

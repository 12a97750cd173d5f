"""One slice of an FX graph becomes an ONNX function, by torch's exporter and onnxscript's rewrite rules."""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import optimizer
from onnxscript.rewriter import onnx_fusions, pattern
from torch import fx

from adaptc.errors import PassError
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.marks import PATH
from adaptc.ir.onnx_ops import DOMAIN
from adaptc.passes.lower.layers import LayerSlice
from adaptc.passes.lower.ops import OPSET, TRANSLATIONS
from adaptc.passes.lower.rope import LayerNorm, Rope, RopeOfNeighbours, RopeOfPart


def translate(layer_slice: LayerSlice, graph: FxGraph, name: str) -> ir.Function:
    """One slice as an ONNX function, through torch's exporter and onnxscript's optimizer and rewrite rules.

    Args:
        layer_slice: What is translated.
        graph: The graph it was cut from, which names sizes.
        name: Name of the function.

    Raises:
        PassError: torch's exporter has no ONNX form for something in it.
    """
    module = layer_slice.module()
    model = _export(module, graph.dims, layer_slice.layer)
    optimizer.optimize_ir(model)
    onnx_fusions.fuse(model)
    pattern.RewriteRuleSet([Rope().rule(), RopeOfNeighbours().rule(), LayerNorm().rule()]).apply_to_model(model)
    pattern.RewriteRuleSet([RopeOfPart().rule()]).apply_to_model(model)
    RemoveUnusedNodesPass()(model)
    _rename_sizes(model.graph, module, graph.dims)
    _read_sizes_off_inputs(model.graph, layer_slice)
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['']"))
        node.metadata_props.clear()
        # An aten operator may become several nodes, the last scope being the operator's own name.
        path = max(scopes[:-1] or [""], key=len)
        node.metadata_props[PATH] = "" if path.startswith("_empty") else path
    _lift_constants(model.graph)
    return ir.Function(DOMAIN, name, graph=model.graph, attributes=[])


def _export(module: fx.GraphModule, dims: Mapping[str, str], layer: str) -> ir.Model:
    """A module as torch's exporter writes it."""
    examples, free = _examples(module, dims)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        exported = torch.export.export(module, examples, dynamic_shapes=free)
        try:
            program = torch.onnx.export(
                exported,
                dynamo=True,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
                custom_translation_table=dict(TRANSLATIONS),
            )
        except torch.onnx.OnnxExporterError as error:
            cause = str(error.__cause__ or error).splitlines()[0]
            raise PassError(f"{layer or 'outside the layers'}: no ONNX form: {cause}") from error
    assert program is not None  # only without dynamo
    return program.model


def _examples(module: fx.GraphModule, dims: Mapping[str, str]) -> tuple[tuple[torch.Tensor, ...], Any]:
    """Empty tensors of the inputs' shapes, and which of their sizes are free."""
    # 2, 7: any sizes but 0 and 1, which the exporter would take for constants.
    sizes = {name: (torch.export.Dim(name, min=1, max=1 << 20), 2 + 5 * i) for i, name in enumerate(dims.values())}
    examples, free = [], []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            value = node.meta["val"]
            named = [dims.get(str(size)) for size in value.shape]
            shape = [sizes[n][1] if n else int(s) for n, s in zip(named, value.shape, strict=True)]
            examples.append(torch.empty(shape, dtype=value.dtype))
            free.append({axis: sizes[n][0] for axis, n in enumerate(named) if n})
    return tuple(examples), tuple(free)


def _rename_sizes(graph: ir.Graph, module: fx.GraphModule, dims: Mapping[str, str]) -> None:
    """Each export numbers its symbols anew; call them what the whole graph calls them."""
    names: dict[str, str] = {}
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for value, node in zip(graph.inputs, placeholders, strict=True):
        for mine, whole in zip(value.shape or (), node.meta["val"].shape, strict=True):
            if isinstance(mine, ir.SymbolicDim):
                names[str(mine)] = dims[str(whole)]
    for value in [*graph.inputs, *(out for node in graph for out in node.outputs)]:
        if value.shape is not None:
            value.shape = ir.Shape([names.get(str(size), size) for size in value.shape])


def _read_sizes_off_inputs(graph: ir.Graph, layer_slice: LayerSlice) -> None:
    """The exporter reads a size off any value that has it; read it off an input of the whole graph.

    Otherwise a size can keep alive what a later pass replaces: `kv_cache` drops the rotary embeddings, and a dense twin
    has no thresholds, which come after the other inputs.
    """
    owners: dict[str, tuple[ir.Value, int]] = {}
    for value, source in zip(graph.inputs, layer_slice.inputs, strict=True):
        if source.op == "placeholder":
            for axis, size in enumerate(value.shape or ()):
                owners.setdefault(str(size), (value, axis))
    for node in graph:
        if node.op_type == "Shape" and node.inputs[0] is not None and node.inputs[0].shape is not None:
            start = node.attributes.get_int("start", 0)
            owner = owners.get(str(node.inputs[0].shape[start]))
            if owner is not None and node.attributes.get_int("end", 0) == start + 1:
                node.replace_input_with(0, owner[0])
                node.attributes["start"] = ir.AttrInt64("start", owner[1])
                node.attributes["end"] = ir.AttrInt64("end", owner[1] + 1)


def _lift_constants(graph: ir.Graph) -> None:
    """A function has no initializers: the exporter's small constants become Constant nodes."""
    first = next(iter(graph))
    for value in list(graph.initializers.values()):
        graph.initializers.pop(value.name or "")
        node = ir.node("Constant", [], {"value": value.const_value})
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        graph.insert_before(first, node)
        value.replace_all_uses_with(node.outputs[0])

"""Translations that were made before: found again by the text of the layer.

A slice's weights are its inputs, so its translation depends on its operators, their options and its inputs' shapes
alone: models of one family have translations in common, whatever their weights.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir
from torch import fx

from adaptc.ir import graph as graph_module
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.onnx_ops import DOMAIN
from adaptc.passes.lower import translation
from adaptc.passes.lower.layers import LayerSlice
from adaptc.passes.store import Store, code_of, piece_key, versions_of

KIND = "translation"
"""What the store calls translations."""


def slice_key(layer_slice: LayerSlice, graph: FxGraph) -> str:
    """Equal for slices that have the same translation.

    Args:
        layer_slice: What is translated.
        graph: The graph it was cut from.
    """
    # The text rounds numbers to six digits, and does not say which inputs are those of the whole graph.
    arguments = [_text(argument) for node in layer_slice.nodes for argument in (node.args, node.kwargs)]
    inputs = [node.op == "placeholder" for node in layer_slice.inputs]
    return piece_key(_code(), layer_slice.text(graph), arguments, inputs, list(graph.dims.values()))


def kept_translation(layer_slice: LayerSlice, graph: FxGraph, name: str, key: str, store: Store) -> ir.Function:
    """A slice as an ONNX function, read from a store, or translated and kept there.

    Args:
        layer_slice: What is translated.
        graph: The graph it was cut from.
        name: Name of the function.
        key: The slice's key, from `slice_key`.
        store: Where translations are kept.

    Raises:
        PassError: torch's exporter has no ONNX form for something in it.
    """
    content = store.read(KIND, key)
    if content is None:
        function = translation.translate(layer_slice, graph, name)
        model = ir.to_proto(ir.Model(function.graph, ir_version=10))
        store.write(KIND, key, model.SerializeToString(deterministic=True))
        return function
    kept = ir.from_proto(onnx.ModelProto.FromString(content))
    return ir.Function(DOMAIN, name, graph=kept.graph, attributes=[])


def _text(value: object) -> str:
    """An argument in full, with a mark in the place of each node, as the slice's text says which it is."""
    if isinstance(value, fx.Node):
        return "%"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={_text(each)}" for key, each in value.items()) + "}"
    return repr(value)


@cache
def _code() -> str:
    """Another one wherever a translation may come out differently: this room, the graph's operators, libraries."""
    rooms = (Path(__file__).parent, Path(graph_module.__file__).parent)
    libraries = versions_of("torch", "onnx", "onnx-ir", "onnxscript")
    return piece_key(code_of(file for room in rooms for file in room.glob("*.py")), libraries)

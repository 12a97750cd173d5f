"""lower: FX graphs become ONNX graphs, each distinct layer translated once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir
import torch
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    InlinePass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)
from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype
from torch import fx

from adaptc.ir.fx_graph import FxGraph, attribute
from adaptc.ir.marks import PATH, path_of
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Program
from adaptc.passes.base import Pass
from adaptc.passes.lower.head import mark_head
from adaptc.passes.lower.kept_translations import kept_translation, slice_key
from adaptc.passes.lower.layers import layer_slices
from adaptc.passes.lower.ops import OPSET
from adaptc.passes.store import PROCESS, Store
from adaptc.runtime.progress import SILENT, Progress, counted

LAYER_OF_CALL = "adaptc.layer"
"""Metadata of a call of a slice, which inlining hands on to its nodes: the module path of the layer it stands for."""


@dataclass(frozen=True, slots=True)
class Lower(Pass):
    """Turn every FX graph into an ONNX graph.

    Before:  torch.fx over aten operators, weights shared with the pretrained model
    After:   ONNX opset 23; RMSNorm, RoPE, attention and the skip gate are single nodes, the last two of adaptc's own
             domain; weights are initializers under their transformers names; every node knows its module path, and
             whether it is of the head

    Needs: FX level. Passes on meaning (`stitch`, `skip_ffn`, `drop_modality`) come before it, passes on speed after.
    Shapes: unchanged.
    Cost: identical layers are translated once and stamped, so depth is nearly free. Translations are kept: a layer like
          one of an earlier compile is not translated again.

    Raises:
        PassError: an operator has no ONNX form; the message names it and where it stands.
    """

    name: ClassVar[str] = "lower"

    def apply(self, program: Program) -> Program:
        return self.apply_with(program, PROCESS)

    def apply_with(self, program: Program, store: Store, progress: Progress = SILENT) -> Program:
        functions: dict[str, ir.Function] = {}  # graphs of one backbone have layers in common
        for name, graph in program.at_level(FxGraph).items():
            program = program.with_graph(name, OnnxGraph(_lower(graph, functions, store, progress)))
        return program


def _lower(graph: FxGraph, functions: dict[str, ir.Function], store: Store, progress: Progress) -> ir.Model:
    """Translate each distinct slice once, call it wherever it stands, and inline the calls.

    Args:
        graph: What is lowered.
        functions: Slices of this program that were translated before, by their keys; new ones are added.
        store: Has translations of earlier programs, and gets new ones.
        progress: Told of each slice.
    """
    used: dict[str, ir.Function] = {}
    values: dict[fx.Node, ir.Value] = {}
    model = _model(graph, values)
    for layer_slice in counted(list(layer_slices(graph.module.graph)), progress):
        key = slice_key(layer_slice, graph)
        if key not in functions:
            functions[key] = kept_translation(layer_slice, graph, f"slice_{len(functions)}", key, store)
        function = used[key] = functions[key]
        call = ir.Node(
            function.domain,
            function.name,
            [values[node] for node in layer_slice.inputs],
            num_outputs=len(layer_slice.outputs),
            metadata_props={LAYER_OF_CALL: layer_slice.layer},
        )
        values.update(zip(layer_slice.outputs, call.outputs, strict=True))
        model.graph.append(call)
    for name, node in zip(graph.module.meta["outputs"], _results(graph.module.graph), strict=True):
        model.graph.outputs.append(values[node])
        values[node].name = name
    model.functions.update({function.identifier(): function for function in used.values()})
    InlinePass()(model)
    CommonSubexpressionEliminationPass()(model)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    _name_by_path(model.graph)
    mark_head(model.graph)
    return model


def _results(graph: fx.Graph) -> list[fx.Node]:
    """What a graph returns."""
    results: Any = graph.output_node().args[0]
    return list(results)


def _model(graph: FxGraph, values: dict[fx.Node, ir.Value]) -> ir.Model:
    """An ONNX model with the graph's inputs and weights and no node yet; `values` receives them."""
    inputs = []
    initializers: dict[str, ir.Value] = {}
    for node in graph.module.graph.nodes:
        if node.op not in ("placeholder", "get_attr"):
            continue
        example = node.meta["val"]
        value = ir.Value(
            name=str(node.target),
            type=ir.TensorType(from_torch_dtype(example.dtype)),
            shape=ir.Shape([graph.dims.get(str(size), size) for size in example.shape]),
        )
        if node.op == "placeholder":
            inputs.append(value)
        else:
            value = initializers.setdefault(value.name or "", value)
            value.const_value = TorchTensor(_weight(graph.module, str(node.target)), name=value.name)
        values[node] = value
    # The order of inputs is the order in which they are named; weights are in order of use.
    body = ir.Graph(
        inputs, [], nodes=[], initializers=list(initializers.values()), opset_imports={"": OPSET}, name="main"
    )
    return ir.Model(body, ir_version=10)


def _weight(module: fx.GraphModule, target: str) -> torch.Tensor:
    value: torch.Tensor = attribute(module, target)
    return value.detach()


def _name_by_path(graph: ir.Graph) -> None:
    """Name nodes and values after their module and operator: `model.layers.3.mlp/Mul`, a number where needed."""
    taken: Counter[str] = Counter()
    ends = {value.name for value in graph.outputs}
    for node in graph:
        place, path = node.metadata_props.pop(LAYER_OF_CALL, ""), path_of(node)
        node.metadata_props[PATH] = ".".join(filter(None, (place, path)))
        name = f"{node.metadata_props[PATH] or 'graph'}/{node.op_type}"
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        for index, value in enumerate(node.outputs):
            if value.name not in ends:
                value.name = node.name if index == 0 else f"{node.name}:{index}"

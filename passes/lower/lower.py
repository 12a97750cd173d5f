"""lower: FX graphs become ONNX graphs, each distinct layer translated once."""

from __future__ import annotations

import ast
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir
import torch
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, InlinePass, RemoveUnusedNodesPass
from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype
from onnxscript import opset23, optimizer
from onnxscript.rewriter import onnx_fusions, pattern
from torch import fx

from adaptc.errors import PassError
from adaptc.ir import (
    attention,  # noqa: F401  (declares adaptc::causal_attention)
    skip,  # noqa: F401  (declares adaptc::skip)
)
from adaptc.ir import place as placing  # noqa: F401  (declares adaptc::place)
from adaptc.ir.graph import FxGraph, OnnxGraph, attribute
from adaptc.ir.program import Program
from adaptc.passes.base import Pass

OPSET = 23
"""First opset with RMSNormalization, RotaryEmbedding and Attention, which later passes look for."""

WINDOW = "adaptc.window"
"""Where an Attention node notes its sliding window, which ONNX has no attribute for."""

LAYER = re.compile(r"^(?:.*\.)?layers\.\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Lower(Pass):
    """Turn every FX graph into an ONNX graph.

    Before:  torch.fx over aten operators, weights shared with the pretrained model
    After:   ONNX opset 23; RMSNorm, RoPE and attention are single nodes; weights are initializers under their
             transformers names; every node knows its module path

    Needs: FX level. Passes on meaning (`stitch`, `skip_ffn`, `drop_modality`) come before it, passes on speed after.
    Shapes: unchanged.
    Cost: identical layers are translated once and stamped, so depth is nearly free.

    Raises:
        PassError: an operator has no ONNX form; the message names it and where it stands.
    """

    name: ClassVar[str] = "lower"

    def apply(self, program: Program) -> Program:
        functions: dict[str, ir.Function] = {}  # graphs of one backbone have layers in common
        for name, graph in program.at_level(FxGraph).items():
            program = program.with_graph(name, OnnxGraph(_lower(graph, functions)))
        return program


def _lower(graph: FxGraph, functions: dict[str, ir.Function]) -> ir.Model:
    """Translate each distinct region once, call it wherever it stands, and inline the calls.

    Args:
        graph: What is lowered.
        functions: Regions that were translated before, by their text; new ones are added.
    """
    used: dict[str, ir.Function] = {}
    values: dict[fx.Node, ir.Value] = {}
    model = _model(graph, values)
    for place, nodes in _regions(graph.module.graph):
        region = _Region.of(place, nodes)
        key = region.text(graph)
        if key not in functions:
            functions[key] = _translate(region, graph, f"region_{len(functions)}")
        function = used[key] = functions[key]
        call = ir.Node(
            function.domain,
            function.name,
            [values[node] for node in region.inputs],
            num_outputs=len(region.outputs),
            metadata_props={"adaptc.place": place},
        )
        values.update(zip(region.outputs, call.outputs, strict=True))
        model.graph.append(call)
    for name, node in zip(graph.module.meta["outputs"], _results(graph.module.graph), strict=True):
        model.graph.outputs.append(values[node])
        values[node].name = name
    model.functions.update({function.identifier(): function for function in used.values()})
    InlinePass()(model)
    CommonSubexpressionEliminationPass()(model)
    RemoveUnusedNodesPass()(model)
    _name_by_path(model.graph)
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


def _regions(graph: fx.Graph) -> Iterable[tuple[str, list[fx.Node]]]:
    """Cut a graph, in order, into what precedes the layers, each layer, and what follows them."""
    place = ""
    nodes: list[fx.Node] = []
    for node in graph.nodes:
        if node.op != "call_function" or _is_size(node):
            continue
        match = LAYER.match(node.meta["path"])
        here = match.group() if match else ""
        if nodes and here != place:
            yield place, nodes
            nodes = []
        place = here
        nodes.append(node)
    if nodes:
        yield place, nodes


def _is_size(node: fx.Node) -> bool:
    return node.target is torch.ops.aten.sym_size.int


@dataclass(frozen=True, slots=True)
class _Region:
    """A piece of a graph: what it reads (values, weights, owners of sizes), its nodes, what others read of it."""

    place: str
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]

    @classmethod
    def of(cls, place: str, nodes: list[fx.Node]) -> _Region:
        inside = set(nodes)
        inputs: dict[fx.Node, None] = {}
        for node in nodes:
            for source in node.all_input_nodes:
                if source not in inside:
                    inputs[source.all_input_nodes[0] if _is_size(source) else source] = None
        outputs = tuple(node for node in nodes if any(user not in inside for user in node.users))
        return cls(place, tuple(nodes), tuple(inputs), outputs)

    def module(self) -> fx.GraphModule:
        """The region alone; every weight is an input, so that equal regions are one and the same module."""
        graph = fx.Graph()
        new: dict[fx.Node, fx.Node] = {}
        for index, node in enumerate(self.inputs):
            new[node] = graph.placeholder(f"input_{index}")
            new[node].meta = {"val": node.meta["val"], "path": ""}
        for node in self.nodes:
            for source in node.all_input_nodes:
                if _is_size(source) and source not in new:
                    new[source] = graph.node_copy(source, new.__getitem__)
            new[node] = graph.node_copy(node, new.__getitem__)
            path = node.meta["path"].removeprefix(self.place).removeprefix(".")
            new[node].meta = {**node.meta, "path": path, "nn_module_stack": {path: (path, "torch.nn.Module")}}
        graph.output(tuple(new[node] for node in self.outputs))
        return fx.GraphModule(torch.nn.Module(), graph)

    def text(self, graph: FxGraph) -> str:
        """Equal for regions that differ in nothing but their place and their weights' values."""
        module = self.module()
        for index, node in enumerate(module.graph.nodes):
            node.name = f"v{index}"
        return FxGraph(module, graph.dims).text()


def _translate(region: _Region, graph: FxGraph, name: str) -> ir.Function:
    """One region as an ONNX function, through torch's exporter and onnxscript's optimizer and rewrite rules.

    Raises:
        PassError: torch's exporter has no ONNX form for something in it.
    """
    module = region.module()
    examples, free = _examples(module, graph.dims)
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
                custom_translation_table={
                    torch.ops.adaptc.causal_attention.default: _attention,
                    torch.ops.adaptc.place.default: _place,
                    torch.ops.adaptc.skip.default: _skip,
                },
            )
        except torch.onnx.OnnxExporterError as error:
            cause = str(error.__cause__ or error).splitlines()[0]
            raise PassError(f"{region.place or 'outside the layers'}: no ONNX form: {cause}") from error
    assert program is not None  # only without dynamo
    model = program.model
    optimizer.optimize_ir(model)
    onnx_fusions.fuse(model)
    pattern.RewriteRuleSet([_Rope().rule()]).apply_to_model(model)
    RemoveUnusedNodesPass()(model)
    _rename_sizes(model.graph, module, graph.dims)
    _read_sizes_off_inputs(model.graph, region)
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['']"))
        window = node.metadata_props.get(WINDOW)
        node.metadata_props.clear()
        if window is not None:
            node.metadata_props[WINDOW] = window
        # An aten operator may become several nodes, the last scope being the operator's own name.
        path = max(scopes[:-1] or [""], key=len)
        node.metadata_props["adaptc.path"] = "" if path.startswith("_empty") else path
    _lift_constants(model.graph)
    return ir.Function("adaptc", name, graph=model.graph, attributes=[])


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


def _read_sizes_off_inputs(graph: ir.Graph, region: _Region) -> None:
    """The exporter reads a size off any value that has it; read it off an input of the whole graph.

    Otherwise a size can keep alive what a later pass replaces: `kv_cache` drops the rotary embeddings.
    """
    owners = {
        str(size): (value, axis)
        for value, node in zip(graph.inputs, region.inputs, strict=True)
        if node.op == "placeholder"
        for axis, size in enumerate(value.shape or ())
    }
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


def _name_by_path(graph: ir.Graph) -> None:
    """Name nodes and values after their module and operator: `model.layers.3.mlp/Mul`, a number where needed."""
    taken: Counter[str] = Counter()
    ends = {value.name for value in graph.outputs}
    for node in graph:
        place, path = node.metadata_props.pop("adaptc.place", ""), node.metadata_props.get("adaptc.path", "")
        node.metadata_props["adaptc.path"] = ".".join(filter(None, (place, path)))
        name = f"{node.metadata_props['adaptc.path'] or 'graph'}/{node.op_type}"
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        for index, value in enumerate(node.outputs):
            if value.name not in ends:
                value.name = node.name if index == 0 else f"{node.name}:{index}"


class _Rope(pattern.RewriteRuleClassBase):  # type: ignore[misc]  # onnxscript has no types
    """x · cos + rotate_half(x) · sin, as every supported family writes it, is one RotaryEmbedding.

    onnxscript's own rule wants cos and sin computed in sight and unscaled; ours takes them as they come
    (another layer computes them, YaRN scales them).
    """

    def __init__(self) -> None:
        # cos and sin are shared by query and key, so the matched nodes have other users.
        super().__init__(name="rope", remove_nodes=False)

    def pattern(self, op: Any, x: Any, cos: Any, sin: Any) -> Any:
        first = op.Slice(x, _allow_other_inputs=True, _outputs=["first"])
        second = op.Slice(x, _allow_other_inputs=True, _outputs=["second"])
        turned = op.Concat(op.Neg(second), first, axis=-1)
        return op.Add(op.Mul(x, op.Unsqueeze(cos, [1])), op.Mul(turned, op.Unsqueeze(sin, [1])))

    def check(self, context: Any, x: ir.Value, first: ir.Value, second: ir.Value, **_: Any) -> bool:
        width = x.shape[3] if x.shape is not None and len(x.shape) == 4 else None
        return (
            isinstance(width, int)
            and _bounds(first) == (0, width // 2, 3, 1)
            and _bounds(second)[:1] == (width // 2,)
            and _bounds(second)[1] >= width
        )

    def rewrite(self, op: Any, x: ir.Value, cos: ir.Value, sin: ir.Value, **_: Any) -> Any:
        half = [0], [x.shape[3] // 2], [2]  # type: ignore[index]
        ends = [op.Constant(value_ints=v) for v in half]
        return op.RotaryEmbedding(x, op.Slice(cos, *ends), op.Slice(sin, *ends), interleaved=0)


def _bounds(value: ir.Value) -> tuple[int, ...]:
    """Start, end, axis, step of a Slice over one axis; empty if any is computed."""
    node = value.producer()
    given = [v for v in node.inputs[1:] if v is not None] if node is not None else []
    numbers = [tensor for v in given if (tensor := ir.convenience.get_const_tensor(v)) is not None and tensor.size == 1]
    return tuple(int(tensor.numpy().item()) for tensor in numbers) if len(numbers) == len(given) else ()


def _attention(query: Any, key: Any, value: Any, scale: float, window: int, softcap: float) -> Any:
    """adaptc::causal_attention in ONNX's own operators; a window becomes a mask, and a note for `kv_cache`."""
    mask = None
    if window:
        tokens = opset23.Shape(query, start=2, end=3)
        position = opset23.Range(0, opset23.Squeeze(tokens), 1)
        ago = opset23.Sub(opset23.Unsqueeze(position, [1]), opset23.Unsqueeze(position, [0]))
        mask = opset23.Less(ago, opset23.Constant(value_int=window))
    out, *_ = opset23.Attention(query, key, value, mask, is_causal=1, scale=scale, softcap=softcap)
    out.producer().metadata_props[WINDOW] = str(window)
    return opset23.Transpose(out, perm=[0, 2, 1, 3])


def _skip(logit: Any, threshold: Any, full: Any, cheap: Any) -> Any:
    """adaptc::skip in ONNX's own operators: both are computed and one is taken, until `branch` makes it an If."""
    runs = opset23.GreaterOrEqual(logit, threshold)
    return opset23.Where(opset23.Unsqueeze(runs, [-1]), full, cheap)


def _place(states: Any, places: Any, values: Any) -> Any:
    """adaptc::place in ONNX's own operators."""
    rows = opset23.Constant(value_ints=[-1, states.shape[2]])
    placed = opset23.ScatterND(
        opset23.Reshape(states, rows), opset23.Unsqueeze(places, [1]), opset23.Reshape(values, rows)
    )
    return opset23.Reshape(placed, opset23.Shape(states))

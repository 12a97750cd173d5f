"""legalize: operators, types and a decoder's cache in a form that every TensorRT builds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from adaptc.errors import PassError
from adaptc.ir.onnx_graph import OnnxGraph, fixed, sizes
from adaptc.ir.program import Program
from adaptc.passes.base import Pass
from adaptc.passes.decoder.positions import STEP_POSITIONS
from adaptc.passes.emit import FLOAT, GEMM, Emitter
from adaptc.passes.match import Projection, projections
from adaptc.passes.targets.legal_attention import Inputs, expand
from adaptc.passes.targets.legal_plain import layer_norm, write_out
from adaptc.passes.targets.legal_weights import HALVES, halved
from adaptc.passes.targets.legality import check
from adaptc.runtime.bundle.names import (
    CACHE_KINDS,
    CACHE_POSITIONS,
    HIDDEN,
    INPUT_IDS,
    POSITIONS,
    SEQLENS_K,
    TOTAL_SEQUENCE_LENGTH,
    cache_tensor,
    is_rope_table,
    step_cache,
)

OPSET = 17
"""What TensorRT 8.6 reads; later versions read it too."""

RESULTS, COLUMNS = 32, 8
"""Products of fewer results, or of columns that are no multiple of this, stay with the nodes around them."""


@dataclass(frozen=True, slots=True)
class Legalize(Pass):
    """Write graphs in the operators and types that every TensorRT builds.

    Before:  o, present = GroupQueryAttention(q, k, v, past, …); y = MatMul(x, Transpose(W)); RMSNormalization, Gelu, …
    After:   plain operators of opset 17. Attention reads the cache where it lies and gives this step's keys and
             values, `new.i.key` and `new.i.value`, which the runtime writes into it: nothing is copied, and no result
             needs to share memory with an input. Products of matrices are in half precision, all else in float32.
             A weight goes into Gemm as it is stored, transposed by the kernel.

    Needs: ONNX level, after kv_cache, before partition. Skip gates stay as they are. Graphs that
           continue no sequence (encoders) stay as they are but for their operators and products.
    Shapes: input_ids int32[batch, tokens], or in a tail hidden float32[batch, tokens, width], which a trunk gives;
            positions int32[batch, tokens]; cache_positions int32[kv_bucket], 0, 1, 2, …;
            past.i.key half[batch, kv_heads, head_dim, kv_bucket];
            past.i.value half[batch, kv_heads, kv_bucket, head_dim];
            new.i.key, new.i.value half[batch, kv_heads, tokens, head_dim]; logits float32[batch, tokens, vocab].
    Cost: none measured; the builder fuses what is written out here. Keys lie turned in the cache: a builder that
          reads them upright turns the whole cache at every step (seen in TensorRT-RTX 1.7.1's list of layers).

    Attributes:
        half: Type of matrix products, of weights and of the cache. bf16 needs TensorRT 10 or RTX.

    Raises:
        PassError: a node that TensorRT cannot build; the message names it and the rule.
    """

    name: ClassVar[str] = "legalize"
    half: Literal["fp16", "bf16"] = "fp16"

    def apply(self, program: Program) -> Program:
        for name, graph in program.at_level(OnnxGraph).items():
            if graph.model.opset_imports.get("") == OPSET:
                continue
            fork = graph.fork()
            if any(node.op_type == "GroupQueryAttention" for node in fork.model.graph):
                _write_decoder(fork.model.graph, self.half)
            else:
                write_out(fork.model.graph, self.half)
            _finish(fork.model)
            check(fork.model)
            program = program.with_graph(name, fork)
        return program


def _write_decoder(graph: ir.Graph, half: str) -> None:
    _expand_attentions(graph, HALVES[half])
    for projection in list(projections(graph)):
        _multiply(graph, projection, half)
    _narrow_ids(graph)
    _measure_positions(graph)
    _halve_tables(graph, half)


def _finish(model: ir.Model) -> None:
    """Operators as opset 17 has them."""
    graph = model.graph
    for body in [graph, *_branches(graph)]:
        for node in list(body):
            rewrite = _REWRITES.get(node.op_type)
            if rewrite is not None:
                rewrite(body, node)
    RemoveUnusedNodesPass()(model)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        graph.initializers.pop(name)
    model.opset_imports[""] = OPSET
    RemoveUnusedOpsetsPass()(model)
    model.ir_version = 8


def _branches(graph: ir.Graph) -> list[ir.Graph]:
    return [attr.as_graph() for node in graph if node.op_type == "If" for attr in node.attributes.values()]


def _expand_attentions(graph: ir.Graph, half: ir.DataType) -> None:
    """Every attention written out; the cache and its bookkeeping become the device's."""
    positions = _input(POSITIONS, ir.DataType.INT32, ["batch", "tokens"])
    given = Inputs(positions, _input(CACHE_POSITIONS, ir.DataType.INT32, ["kv_bucket"]), half)
    for value in list(graph.outputs):
        if cache_tensor(value.name) is not None:
            graph.outputs.remove(value)
    for layer, node in enumerate([n for n in graph if n.op_type == "GroupQueryAttention"]):
        past = node.inputs[3:5]
        for cache, turned in zip(past, (True, False), strict=True):
            assert cache is not None
            batch, heads, _, width = sizes(cache)
            places = [width, "kv_bucket"] if turned else ["kv_bucket", width]
            cache.type, cache.shape = ir.TensorType(half), ir.Shape([batch, heads, *places])
        for new, kind in zip(expand(graph, node, given), CACHE_KINDS, strict=True):
            new.name = step_cache(layer, kind)
            graph.outputs.append(new)
    for node in graph:
        if node.outputs[0].name == STEP_POSITIONS:
            node.outputs[0].replace_all_uses_with(positions)
    for name in (SEQLENS_K, TOTAL_SEQUENCE_LENGTH):
        for value in [v for v in graph.inputs if v.name == name]:
            graph.inputs.remove(value)
    graph.inputs[1:1] = [given.positions, given.cache_positions]


def _input(name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _multiply(graph: ir.Graph, projection: Projection, half: str) -> None:
    """Y = MatMul(x, Transpose(W)) in half precision, as Gemm over rows; y is float32 again.

    All but the cast of x is marked as one GEMM, from half-precision rows and a weight to float32.
    """
    old = projection.matmul
    body = old.graph
    assert isinstance(body, ir.Graph)
    emit = Emitter(body, old)
    out, columns = fixed(projection.weight)
    weight = halved(graph, projection.weight, half)
    given = old.inputs[0]  # not projection.x: a GEMM right before this one has been written anew since
    assert given is not None
    x = emit.cast(given, HALVES[half])
    if out >= RESULTS and columns % COLUMNS == 0:
        emit.mark(GEMM, old.name or "")
    rows = emit.reshape(x, [-1, columns], ["rows", columns])
    product = emit.call("Gemm", rows, weight, shape=["rows", out], transB=1)
    lead = [emit.size(x, axis) for axis in (0, 1)]
    y = emit.reshape(product, [*lead, out], ["batch", "tokens", out])
    emit.replace(emit.cast(y, FLOAT))


def _halve_tables(graph: ir.Graph, half: str) -> None:
    """Look embeddings up in half precision; what is found goes on as float32."""
    for node in list(graph):
        table = node.inputs[0] if node.op_type == "Gather" else None
        if table is None or not table.is_initializer() or is_rope_table(table.name):
            continue
        if table.dtype != FLOAT or len(table.shape or ()) != 2:
            continue
        emit = Emitter(graph, node)
        rows = emit.call("Gather", halved(graph, table, half), *node.inputs[1:], axis=0)
        rows.shape = node.outputs[0].shape
        emit.replace(emit.cast(rows, FLOAT))


def _narrow_ids(graph: ir.Graph) -> None:
    """Token ids are int32 on the device; 8.6 has no int64 inputs."""
    for value in graph.inputs:
        if value.dtype == ir.DataType.INT64:
            value.type = ir.TensorType(ir.DataType.INT32)


def _measure_positions(graph: ir.Graph) -> None:
    """A step's sizes are asked of its positions, which every piece may read: no shape goes from engine to engine."""
    given = {value.name: value for value in graph.inputs}
    for name in given.keys() & {INPUT_IDS, HIDDEN}:
        for use in given[name].uses():
            if use.node.op_type == "Shape":
                use.node.replace_input_with(0, given[POSITIONS])


def _norm(graph: ir.Graph, node: ir.Node) -> None:
    """RMSNormalization in float32: x · w / sqrt(mean(x²) + ε)."""
    x, weight = node.inputs[:2]
    assert x is not None
    emit = Emitter(graph, node)
    mean = emit.call("ReduceMean", emit.call("Mul", x, x), axes=[-1], keepdims=1)
    epsilon = emit.constant(node.attributes.get_float("epsilon", 1e-5), FLOAT)
    length = emit.call("Sqrt", emit.call("Add", mean, epsilon))
    emit.replace(emit.call("Mul", emit.call("Div", x, length), weight))


def _layer_norm(graph: ir.Graph, node: ir.Node) -> None:
    """LayerNormalization over the last axis; other forms are left to the builder."""
    if node.attributes.get_int("axis", -1) == -1:
        layer_norm(graph, node)


def _gelu(graph: ir.Graph, node: ir.Node) -> None:
    """Gelu, exact or by tanh (opset 20 has it as one operator)."""
    x = node.inputs[0]
    emit = Emitter(graph, node)
    half, one = emit.constant(0.5, FLOAT), emit.constant(1.0, FLOAT)
    if node.attributes.get_string("approximate", "none") == "tanh":
        cube = emit.call("Mul", emit.call("Mul", x, x), emit.call("Mul", x, emit.constant(0.044715, FLOAT)))
        inner = emit.call("Mul", emit.call("Add", x, cube), emit.constant(math.sqrt(2 / math.pi), FLOAT))
        shape = emit.call("Tanh", inner)
    else:
        shape = emit.call("Erf", emit.call("Mul", x, emit.constant(math.sqrt(0.5), FLOAT)))
    emit.replace(emit.call("Mul", emit.call("Mul", x, half), emit.call("Add", shape, one)))


def _shape(graph: ir.Graph, node: ir.Node) -> None:
    """Shape's start and end (opset 15), which 8.6's parser does not read."""
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", 1 << 20)
    value = node.inputs[0]
    if value is None or not {"start", "end"} & set(node.attributes):
        return
    rank = len(value.shape or ())
    emit = Emitter(graph, node)
    axes = emit.constant(list(range(rank))[start:end])
    emit.replace(emit.call("Gather", emit.call("Shape", value, dtype=ir.DataType.INT64), axes, axis=0))


def _matrix(graph: ir.Graph, node: ir.Node) -> None:
    """A gate's product, [batch, tokens, width] · [width, 1], as a sum: one column is no work for a matrix kernel."""
    x, weight = node.inputs
    if weight is None or not weight.is_initializer() or len(weight.shape or ()) != 2 or fixed(weight)[1] != 1:
        return
    emit = Emitter(graph, node)
    row = emit.reshape(weight, [-1], [fixed(weight)[0]])
    emit.replace(emit.call("ReduceSum", emit.call("Mul", x, row), emit.constant([-1]), keepdims=1))


def _reduce(graph: ir.Graph, node: ir.Node) -> None:
    """Axes as an attribute, as before opset 18."""
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is None:
        return
    numbers = ir.convenience.get_const_tensor(axes)
    if numbers is None:
        raise PassError(f"{node.name}: {node.op_type} over axes that are computed; constant ones are right")
    emit = Emitter(graph, node)
    kept = node.attributes.get_int("keepdims", 1)
    emit.replace(emit.call(node.op_type, node.inputs[0], axes=numbers.numpy().reshape(-1).tolist(), keepdims=kept))


def _reshape(_: ir.Graph, node: ir.Node) -> None:
    """Sizes of 0 mean "as before", as the older parsers read them."""
    node.attributes.pop("allowzero", None)


def _constant(graph: ir.Graph, node: ir.Node) -> None:
    """Every constant as a tensor."""
    for kind, dtype in (("value_ints", np.int64), ("value_int", np.int64), ("value_float", np.float32)):
        if kind in node.attributes:
            array = np.array(node.attributes[kind].value, dtype)
            node.attributes.clear()
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array))
            node.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
            node.outputs[0].shape = ir.Shape(array.shape)


_REWRITES: dict[str, Callable[[ir.Graph, ir.Node], None]] = {
    "RMSNormalization": _norm,
    "LayerNormalization": _layer_norm,
    "Gelu": _gelu,
    "Shape": _shape,
    "MatMul": _matrix,
    "ReduceMean": _reduce,
    "ReduceMax": _reduce,
    "ReduceMin": _reduce,
    "Reshape": _reshape,
    "Constant": _constant,
}
"""What is written otherwise, by operator."""

"""quantize_cache: keys and values are kept in 16 or 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from adaptc.errors import PassError
from adaptc.ir.onnx_graph import OnnxGraph, sizes
from adaptc.ir.program import CacheRanges, Program
from adaptc.passes.base import Pass
from adaptc.passes.decoder.kv_cache import ATTENTION, BIAS, PAST, layer_of
from adaptc.passes.emit import FLOAT, Emitter
from adaptc.passes.match import initializer
from adaptc.runtime.bundle.names import CACHE_KINDS, cache_scale, is_rope_table

_PAST, _SCALES = slice(PAST, PAST + len(CACHE_KINDS)), 12
"""Inputs of the kernel: the cache; from where on scales stand."""

_IN_HALF = (0, 1, 2, 7, 8, BIAS)
"""Those that have the cache's type: query, key and value, tables of the rotary embedding, what is added to scores."""
_CODES = 127
"""Codes go from -127 to 127."""


@dataclass(frozen=True, slots=True)
class QuantizeCache(Pass):
    """Keep keys and values in half precision, or as 8-bit codes with a scale for each channel of each head.

    Before:  o, present = GroupQueryAttention(q, k, v, past, …); past: float32
    After:   fp16: the same operator in half precision between casts; past: float16
             int8: o, present = GroupQueryAttention(q, k, v, past, …, key scales, value scales); past: int8

    A key is stored after its rotary embedding. Scales are the largest magnitudes that calibration text gave each
    channel, divided by 127; a later token past them is cut off there. Each is a constant, so what is stored of a token
    depends on no other token.

    Needs: ONNX level, after `kv_cache`, and before passes that repeat a graph; for int8 `Program.cache_ranges`.
    Shapes: past.i.key, past.i.value: float16 or int8 [batch, kv_heads, max_tokens, head_dim].
    Cost: half or a quarter of the cache's memory. With AVX-512 SmolLM2's steps after 2,048 tokens take 0.80 of the
          time with int8, 1.34 with fp16; prompts of as many take 1.80 and 0.95 (docs/results/kv-cache.md).

    Attributes:
        stored: How entries are kept.

    Raises:
        PassError: int8, and nothing is known of what a graph keeps.

    Reference: GroupQueryAttention, onnxruntime contrib operators, com.microsoft version 1.
    """

    name: ClassVar[str] = "quantize_cache"
    stored: Literal["fp16", "int8"] = "int8"

    def apply(self, program: Program) -> Program:
        for name, graph in program.at_level(OnnxGraph).items():
            if not attentions(graph):
                continue
            fork = graph.fork()
            if self.stored == "fp16":
                _halve(fork.model.graph, attentions(fork))
            else:
                _encode(fork.model.graph, attentions(fork), program.cache_ranges.get(name, ()))
            program = program.with_graph(name, fork)
        return program


def attentions(graph: OnnxGraph) -> list[ir.Node]:
    """Attentions of a graph over a cache in float32, in the order of layers."""
    return [node for node in graph.model.graph if node.op_type == ATTENTION and _past(node)[0].dtype == FLOAT]


def _past(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """An attention's cache: keys and values.

    Raises:
        PassError: it reads none that is a graph's input.
    """
    layer_of(node)
    key, value = node.inputs[_PAST]
    assert key is not None
    assert value is not None
    return key, value


def _keep_as(node: ir.Node, kind: ir.DataType) -> None:
    """Give an attention's cache another type."""
    for value in (*_past(node), *node.outputs[1:]):
        value.type = ir.TensorType(kind)


def _halve(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    half = ir.DataType.FLOAT16
    casts: dict[ir.Value, ir.Value] = {}  # what is added to scores is one value for all layers
    for node in nodes:
        _keep_as(node, half)
        new = Emitter(graph, node)
        for place, value in enumerate(node.inputs):
            if place not in _IN_HALF or value is None:
                continue
            if is_rope_table(value.name):
                node.replace_input_with(place, _half_table(graph, value))
                continue
            if value not in casts:
                casts[value] = new.call("Cast", value, dtype=half, shape=sizes(value), to=int(half))
            node.replace_input_with(place, casts[value])
        result = node.outputs[0]
        result.type = ir.TensorType(half)
        users = list(result.uses())
        after = ir.node("Cast", [result], {"to": int(FLOAT)}, name=f"{node.name}/float32")
        after.metadata_props.update(node.metadata_props)
        [wide] = after.outputs
        wide.name, wide.type, wide.shape = after.name, ir.TensorType(FLOAT), result.shape
        graph.insert_after(node, after)
        for user, place in users:
            user.replace_input_with(place, wide)
    for name in [name for name, value in graph.initializers.items() if is_rope_table(name) and not value.uses()]:
        graph.initializers.pop(name)


def _half_table(graph: ir.Graph, table: ir.Value) -> ir.Value:
    name = f"{table.name}.fp16"
    if name in graph.initializers:
        return graph.initializers[name]
    assert table.const_value is not None
    return initializer(graph, ir.tensor(table.const_value.numpy().astype(np.float16), name=name))


def _encode(graph: ir.Graph, nodes: Sequence[ir.Node], ranges: CacheRanges) -> None:
    if len(ranges) != len(nodes):
        raise PassError(f"kv_cache: int8; ranges of {len(nodes)} layers are needed, {len(ranges)} are known")
    for node, layer_ranges in zip(nodes, ranges, strict=True):
        _keep_as(node, ir.DataType.INT8)
        layer = layer_of(node)
        scales = [
            initializer(graph, ir.tensor(scales_of(each), name=cache_scale(layer, kind)))
            for kind, each in zip(CACHE_KINDS, layer_ranges, strict=True)
        ]
        node.resize_inputs(_SCALES + len(scales))
        for place, scale in enumerate(scales, _SCALES):
            node.replace_input_with(place, scale)
        for kind in ("k_quant_type", "v_quant_type"):
            node.attributes.add(ir.AttrString(kind, "PER_CHANNEL"))
        node.attributes.add(ir.AttrInt64("kv_cache_bit_width", 8))


def scales_of(ranges: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The scales of channels with these largest magnitudes: float32 [heads, width] -> [1, heads, 1, width].

    A channel that is always zero, as those which fill a head up, has the scale 1.
    """
    scales = np.where(ranges > 0, ranges / _CODES, 1).astype(np.float32)
    return scales[None, :, None, :]

"""kv_cache: attention over the whole sequence becomes attention over a cache that is updated in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from adaptc.errors import PassError
from adaptc.ir.marks import label
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.onnx_ops import CHUNKED_ATTENTION, is_causal_attention, places_of
from adaptc.ir.program import Program
from adaptc.passes.base import Pass
from adaptc.passes.decoder.attention_parts import HeadsPart, flat, unrotated
from adaptc.passes.decoder.chunks import chunk_bias
from adaptc.passes.decoder.head_width import cut, padded, padded_table, padded_width, pieces_of
from adaptc.passes.decoder.image_attention import Heads, StepImages, seeing_images, step_images
from adaptc.passes.decoder.positions import count_positions
from adaptc.passes.match import initializer
from adaptc.runtime.bundle.names import (
    CACHE_KINDS,
    POSITION_IDS,
    SEQLENS_K,
    TOTAL_SEQUENCE_LENGTH,
    cache_tensor,
    rope_table,
)
from adaptc.runtime.bundle.names import past as past_name
from adaptc.runtime.bundle.names import present as present_name

ATTENTION = "GroupQueryAttention"
"""The kernel of attention over a cache; its inputs from `PAST` on are a layer's keys and values."""

PAST = 3

LENGTHS, TOTAL = 5, 6
"""The kernel's inputs `seqlens_k` and `total_sequence_length`."""

TURNED_BY = 9
"""The kernel's input of positions that RoPE turns by; without it, those that `LENGTHS` implies."""

BIAS = 10
"""The kernel's input of what is added to scores."""


@dataclass(frozen=True, slots=True)
class KvCache(Pass):
    """Give each attention a KV cache; positions and RoPE move into the attention kernel.

    Before:  o = CausalAttention(RoPE(q), RoPE(k), v), over all tokens at once
    After:   o, present = GroupQueryAttention(q, k, v, past, seqlens_k, total_sequence_length, cos, sin)

    The runtime binds one buffer as `past.i.key` and `present.i.key`, so a step writes its tokens' keys and values and
    copies nothing. RoPE tables are computed once, by running the model's own subgraph over every position, so each
    static kind of RoPE (default, linear, Llama 3, YaRN, LongRoPE for so many tokens) is served by the same code. Where
    a token has three positions, as with images in Qwen2-VL, they stay an input, and RoPE stays before the kernel.
    Attention in chunks, as in Llama 4, adds a bias to scores, unless a chunk holds all positions.
    Where an image is seen whole, as in Gemma 3, a step with images computes attention by a mask (`image_attention.py`).

    RoPE may turn a part of each head, neighbours instead of halves, or nothing in some layers. What else reads
    positions, as an embedding of them, gets them counted from seqlens_k.

    The kernel takes heads of whole multiples of 16; others are filled up with zeros and cut again (`head_width.py`).

    Needs: ONNX level, after lower.
    Shapes: input_ids int64[batch, tokens]; seqlens_k int32[batch], valid positions after this step, minus 1;
            total_sequence_length int32[]; past.i.key, past.i.value float32[batch, kv_heads, max_tokens, head_dim].
    Cost: 2 · layers · batch · kv_heads · max_tokens · head_dim · 4 bytes of cache.

    Attributes:
        max_tokens: Positions the cache and the RoPE tables hold.
        head_multiple: Of what the width of a head must be a multiple; an even number, or 1 for a target that takes any.

    Raises:
        PassError: an attention that shares no RoPE between query and key.

    Reference: GroupQueryAttention, onnxruntime contrib operators, com.microsoft version 1.
    """

    name: ClassVar[str] = "kv_cache"
    max_tokens: int = 2048
    head_multiple: int = 16

    def apply(self, program: Program) -> Program:
        for name, graph in program.at_level(OnnxGraph).items():
            if any(map(is_causal_attention, graph.model.graph)):
                fork = graph.fork()
                _cache(fork, self.max_tokens, self.head_multiple)
                program = program.with_graph(name, fork)
        return program


def layer_of(node: ir.Node) -> int:
    """Number of the layer whose cache an attention reads.

    Raises:
        PassError: it reads the cache of no layer.
    """
    past = node.inputs[PAST]
    tensor = cache_tensor(past.name) if past is not None else None
    if tensor is None:
        raise PassError(f"{label(node)}: {ATTENTION} over a layer's cache is needed; its input {PAST} is {past}")
    return tensor.layer


def _cache(graph: OnnxGraph, max_tokens: int, head_multiple: int) -> None:
    model = graph.model
    main = model.graph
    model.opset_imports["com.microsoft"] = 1
    seqlens = ir.Value(name=SEQLENS_K, type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape(["batch"]))
    total = ir.Value(name=TOTAL_SEQUENCE_LENGTH, type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape([]))
    main.inputs.extend([seqlens, total])
    spatial = any(value.name == POSITION_IDS and len(value.shape or ()) == 3 for value in main.inputs)
    attentions = [(node, _parts(main, node)) for node in main if is_causal_attention(node)]
    tables: dict[tuple[str, str], tuple[ir.Value, ir.Value]] = {}
    for _, (query, *_others) in attentions:
        rope = query.rope
        if rope is not None and rope.tables not in tables and not spatial:
            width = padded_width(2 * rope.pairs, head_multiple)
            tables[rope.tables] = _tables(graph, rope.tables, max_tokens, len(tables), width)
    images = _step_images(main, [node for node, _ in attentions], seqlens, total)
    biases = _chunk_biases(main, [node for node, _ in attentions], seqlens, total, max_tokens)
    for layer, (node, parts) in enumerate(attentions):
        query, key, _ = parts
        rope, kv_heads = query.rope, key.heads
        pieces = pieces_of(key.width, rope, head_multiple)
        turns = () if spatial or rope is None else tables[rope.tables]
        width = sum(filled for _, filled in pieces)
        past = [_cache_value(past_name(layer, kind), kv_heads, max_tokens, width) for kind in CACHE_KINDS]
        present = [_cache_value(present_name(layer, kind), kv_heads, max_tokens, width) for kind in CACHE_KINDS]
        turned = (_joined(main, node, 0, query), _joined(main, node, 1, key)) if spatial else ()
        parts_read = [*turned, *(flat(main, node, part) for part in parts[len(turned) :])]
        wide = [padded(main, node, value, part.heads, pieces) for value, part in zip(parts_read, parts, strict=True)]
        heads = Heads(
            query=wide[0],
            heads=query.heads,
            kv_heads=kv_heads,
            width=width,
            turns=turns,
            neighbours=bool(turns) and rope is not None and rope.neighbours,
            scale=node.attributes.get_float("scale", key.width**-0.5),
            softcap=node.attributes.get_float("softcap", 0.0),
            window=node.attributes.get_int("window", 0),
        )
        given: list[ir.Value | None] = [*wide, *past, seqlens, total, *turns]
        if (bias := biases.get(_chunk(node))) is not None:
            given += [None] * (BIAS - len(given)) + [bias]
        kernel = _kernel(node, heads, given, present)
        main.insert_before(node, kernel)
        out = kernel.outputs[0]
        if images is not None:
            out = seeing_images(main, node, images, heads, out, present)
        _after(node).replace_all_uses_with(cut(main, node, out, query.heads, pieces))
        main.inputs.extend(past)
        main.outputs.extend(present)
    if not spatial:
        count_positions(main, seqlens, max_tokens)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    for unused in [v for v in main.inputs if v.name == POSITION_IDS and not v.uses()]:
        main.inputs.remove(unused)


def _parts(main: ir.Graph, node: ir.Node) -> tuple[HeadsPart, HeadsPart, HeadsPart]:
    """Query, key and value of an attention."""
    query, key, value = (unrotated(main, each, node) for each in node.inputs[:3])
    if query.rope != key.rope or value.rope is not None:
        raise PassError(f"{label(node)}: query and key must share one rotary embedding, and value have none")
    return query, key, value


def _kernel(node: ir.Node, heads: Heads, inputs: Sequence[ir.Value | None], present: Sequence[ir.Value]) -> ir.Node:
    """The kernel over a cache that stands for an attention over whole sequences."""
    shape = ir.Shape(["batch", "tokens", heads.heads * heads.width])
    out = ir.Value(name=f"{node.name}/out", type=heads.query.type, shape=shape)
    return ir.node(
        ATTENTION,
        inputs,
        {
            "num_heads": heads.heads,
            "kv_num_heads": heads.kv_heads,
            "scale": heads.scale,
            "softcap": heads.softcap,
            "local_window_size": heads.window or -1,
            "do_rotary": int(bool(heads.turns)),
            **({"rotary_interleaved": 1} if heads.neighbours else {}),
        },
        domain="com.microsoft",
        outputs=[out, *present],
        name=f"{label(node)}/{ATTENTION}",
        metadata_props=dict(node.metadata_props),
    )


def _chunk(node: ir.Node) -> int:
    """Positions of a chunk of an attention; 0 for one that sees all."""
    return node.attributes.get_int("chunk", 1) if node.op_type == CHUNKED_ATTENTION else 0


def _chunk_biases(
    main: ir.Graph, attentions: Sequence[ir.Node], seqlens: ir.Value, total: ir.Value, max_tokens: int
) -> dict[int, ir.Value]:
    """What is added to scores, by the chunks that do not hold all positions."""
    chunks = sorted({chunk for chunk in map(_chunk, attentions) if 0 < chunk < max_tokens})
    return {chunk: chunk_bias(main, seqlens, total, chunk) for chunk in chunks}


def _step_images(
    main: ir.Graph, attentions: Sequence[ir.Node], seqlens: ir.Value, total: ir.Value
) -> StepImages | None:
    """What images decide for all attentions of a graph; None if these see none whole."""
    found = [places for node in attentions if (places := places_of(node)) is not None]
    if not found:
        return None
    windows = {node.attributes.get_int("window", 0): None for node in attentions}
    return step_images(main, found[0], seqlens, total, [*windows])


def _joined(main: ir.Graph, attention: ir.Node, place: int, part: HeadsPart) -> ir.Value:
    """Query or key after its rotary embedding, as [batch, tokens, heads · width]."""
    back = ir.node("Transpose", [attention.inputs[place]], {"perm": [0, 2, 1, 3]})
    shape = ir.node("Constant", [], {"value_ints": [0, 0, part.size]})
    flat = ir.node("Reshape", [back.outputs[0], shape.outputs[0]])
    for node in (back, shape, flat):
        node.metadata_props.update(attention.metadata_props)
        node.name = node.outputs[0].name = f"{attention.name}/{node.op_type}_{place}"
    back.outputs[0].type = flat.outputs[0].type = part.source.type
    back.outputs[0].shape = ir.Shape(["batch", "tokens", part.heads, part.width])
    flat.outputs[0].shape = ir.Shape(["batch", "tokens", part.size])
    main.insert_before(attention, [back, shape, flat])
    return flat.outputs[0]


def _after(attention: ir.Node) -> ir.Value:
    """The attention's result with heads joined: [batch, tokens, heads · width]."""
    users = [use.node for use in attention.outputs[0].uses()]
    if len(users) != 1 or users[0].op_type != "Reshape":
        raise PassError(f"{label(attention)}: its heads must be joined by one Reshape; found {users or 'nothing'}")
    return users[0].outputs[0]


def _tables(
    graph: OnnxGraph, names: tuple[str, str], positions: int, number: int, width: int
) -> tuple[ir.Value, ir.Value]:
    """Run the model's own rotary subgraph over positions 0 … positions - 1; cos, sin: float32[positions, width / 2]."""
    probe = graph.fork().model
    for name in [name for name, value in probe.graph.initializers.items() if not value.uses()]:
        probe.graph.initializers.pop(name)
    values = {value.name: value for node in probe.graph for value in node.outputs}
    probe.graph.outputs.clear()
    probe.graph.outputs.extend(values[name] for name in names)
    RemoveUnusedNodesPass()(probe)
    for value in [v for v in probe.graph.inputs if not v.uses()]:
        probe.graph.inputs.remove(value)
    for name in [n for n, v in probe.graph.initializers.items() if not v.uses()]:
        probe.graph.initializers.pop(name)
    arrays = OnnxGraph(probe).run({POSITION_IDS: np.arange(positions, dtype=np.int64)[None]})
    return tuple(  # type: ignore[return-value]
        initializer(
            graph.model.graph,
            ir.tensor(padded_table(arrays[name][0].astype(np.float32), width, fill), name=rope_table(number, kind)),
        )
        for kind, name, fill in zip(("cos", "sin"), names, (1.0, 0.0), strict=True)  # the filling is not turned
    )


def _cache_value(name: str, heads: int, positions: int, width: int) -> ir.Value:
    shape = ir.Shape(["batch", heads, positions, width])
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=shape)

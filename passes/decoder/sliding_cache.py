"""sliding_cache: layers that attend over a window keep the newest positions of a text instead of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from adaptc.ir.cache_positions import keep_positions
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Program
from adaptc.passes.base import Pass
from adaptc.passes.decoder.kv_cache import ATTENTION, LENGTHS, PAST, TOTAL, TURNED_BY, layer_of
from adaptc.runtime.bundle.cache_window import ROLLBACK, SLACK
from adaptc.runtime.bundle.names import ROWS, TOKEN_POSITIONS, cache_tensor, window_lengths, window_total
from adaptc.runtime.bundle.plan import Switch


@dataclass(frozen=True, slots=True)
class SlidingCache(Pass):
    """Give layers that attend over a window a cache of the window's size and some room, whatever `max_tokens` is.

    Before:  o, present = GroupQueryAttention(q, k, v, past, seqlens_k, total_sequence_length, cos, sin)
    After:   o, present = GroupQueryAttention(q, k, v, past, window.0.seqlens_k, window.0.total_sequence_length,
                                              cos, sin, token_positions); past: [batch, kv_heads, positions, head_dim]

    The cache of such a layer holds the newest positions of a text. The runtime moves them to the beginning of the
    buffer when it is full, which happens every `slack` / 2 tokens, and tells the kernel places in the buffer where it
    was told positions. Keys stay as they were turned, by positions in the text, and a window is the same at any
    place: so the numbers are those of a cache of all positions. The kernel multiplies with all that is in the buffer
    and leaves out what is outside the window then, so steps of long texts are quicker as well.

    Layers stay as they are where the buffer would hold `max_tokens` or more; so do all layers of programs with routes,
    where a tail may be set back by any number of tokens, and of a graph that drafts, for the same reason.

    Needs: ONNX level, after `kv_cache` and `quantize_cache`, and before passes that repeat a graph.
    Shapes: past.i.key, past.i.value: [batch, kv_heads, window + 64 + slack, head_dim];
            window.n.seqlens_k int32[batch], window.n.total_sequence_length int32[], as `seqlens_k` and
            `total_sequence_length`, less what was given up of each text; token_positions int64[batch, tokens].
    Cost: a move of window + 64 positions for every `slack` / 2 tokens.

    Attributes:
        slack: Positions that the buffer has beyond window and rollback, half of them for a piece of a prompt; at
            least 32, and a power of two.

    Reference: Jiang et al. 2023, "Mistral 7B", rolling buffer cache; GroupQueryAttention, onnxruntime contrib
    operators.
    """

    name: ClassVar[str] = "sliding_cache"
    slack: int = SLACK

    def apply(self, program: Program) -> Program:
        if any(isinstance(step, Switch) for step in program.plan):
            return program
        for name, graph in program.at_level(OnnxGraph).items():
            if name != program.draft and _windowed(graph, self.slack):
                fork = graph.fork()
                _slide(fork, _windowed(fork, self.slack), self.slack)
                program = program.with_graph(name, fork)
        return program


def _windowed(graph: OnnxGraph, slack: int) -> list[ir.Node]:
    """Attentions over a window whose cache becomes smaller."""
    main = graph.model.graph
    if any(value.name == ROWS for value in main.inputs):
        return []
    return [node for node in main if node.op_type == ATTENTION and 0 < _positions(node, slack) < _held(node)]


def _positions(node: ir.Node, slack: int) -> int:
    """How many positions are enough for an attention; 0 for one that attends to all."""
    window = node.attributes.get_int("local_window_size", -1)
    return window + ROLLBACK + slack if window > 0 else 0


def _held(node: ir.Node) -> int:
    """How many positions the cache of an attention holds."""
    past = node.inputs[PAST]
    assert past is not None
    assert past.shape is not None
    return int(str(past.shape[2]))


def _slide(graph: OnnxGraph, nodes: Sequence[ir.Node], slack: int) -> None:
    main = graph.model.graph
    keep_positions(graph, _held(nodes[0]))
    sizes = sorted({_positions(node, slack) for node in nodes})
    told = [
        (
            _input(window_lengths(number), ir.DataType.INT32, ["batch"]),
            _input(window_total(number), ir.DataType.INT32, []),
        )
        for number in range(len(sizes))
    ]
    main.inputs.extend(value for pair in told for value in pair)
    places = _input(TOKEN_POSITIONS, ir.DataType.INT64, ["batch", "tokens"])
    if any(node.attributes.get_int("do_rotary", 0) for node in nodes):
        main.inputs.append(places)
    layers = {layer_of(node): _positions(node, slack) for node in nodes}
    for value in (*main.inputs, *main.outputs):
        tensor = cache_tensor(value.name)
        if tensor is not None and tensor.layer in layers:
            assert value.shape is not None
            value.shape = ir.Shape([*value.shape[:2], layers[tensor.layer], value.shape[3]])
    for node in nodes:
        lengths, total = told[sizes.index(_positions(node, slack))]
        node.replace_input_with(LENGTHS, lengths)
        node.replace_input_with(TOTAL, total)
        if node.attributes.get_int("do_rotary", 0):
            node.resize_inputs(max(len(node.inputs), TURNED_BY + 1))
            node.replace_input_with(TURNED_BY, places)


def _input(name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))

"""Attention over a cache in ONNX's plain operators, which every TensorRT fuses by itself.

The cache is read where it lies and never copied: scores over the cache and over the step's own tokens are computed
apart, put side by side for one softmax, and the two parts of the result are added. The step's keys and values are
results of the graph; the runtime writes them into the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from adaptc.errors import PassError
from adaptc.ir.marks import label
from adaptc.ir.onnx_graph import fixed, sizes
from adaptc.passes.decoder.kv_cache import BIAS
from adaptc.passes.emit import FLOAT, Emitter

FAR = -1e30
"""Added to the score of a position that must not be read; softmax in float32 makes it 0."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What every attention of a graph reads beside its own values.

    Attributes:
        positions: int32[batch, tokens], the place of each of the step's tokens in its sequence.
        cache_positions: int32[kv_bucket], 0, 1, 2, …: the positions of the cache that the step reads.
        half: The type of matrix products and of the cache.
    """

    positions: ir.Value
    cache_positions: ir.Value
    half: ir.DataType


@dataclass(frozen=True, slots=True)
class _Heads:
    """Sizes of one attention."""

    query: int
    kv: int
    width: int

    @property
    def group(self) -> int:
        """Query heads that share one key."""
        return self.query // self.kv


def expand(graph: ir.Graph, node: ir.Node, step_inputs: Inputs) -> tuple[ir.Value, ir.Value]:
    """Replace a GroupQueryAttention by plain operators.

    Args:
        graph: Where it is.
        node: As `kv_cache` and `fuse_projections` leave it.
        step_inputs: The graph's inputs that attention reads.

    Returns:
        The step's keys and values, [batch, kv_heads, tokens, head_dim].
    """
    if len(node.inputs) > BIAS and node.inputs[BIAS] is not None:
        raise PassError(f"{label(node)}: attention in chunks has no form for TensorRT; backend: onnxruntime is right")
    numbers = {name: attr.value for name, attr in node.attributes.items()}
    past_key, past_value = node.inputs[3:5]
    assert past_key is not None
    assert past_value is not None
    heads = _Heads(numbers["num_heads"], numbers["kv_num_heads"], _width(past_value))
    emit = Emitter(graph, node)
    query, key, value = _split(emit, node, heads)
    query, key = (_rotate(emit, part, node, step_inputs.positions) for part in (query, key))
    scale = emit.constant(numbers["scale"], FLOAT)
    query = emit.cast(
        emit.call("Mul", query, scale, shape=["batch", "tokens", heads.query, heads.width]), step_inputs.half
    )
    key, value = (_by_head(emit, emit.cast(part, step_inputs.half), heads) for part in (key, value))
    query = _grouped(emit, query, heads)
    scores = _scores(emit, query, (past_key, key), numbers)
    scores = emit.reshape(
        scores,
        [0, heads.kv, emit.size(step_inputs.positions, 1), heads.group, -1],
        ["batch", heads.kv, "tokens", heads.group, "places"],
    )
    scores = emit.call("Add", scores, _bias(emit, step_inputs, int(numbers["local_window_size"])))
    weights = emit.cast(emit.call("Softmax", scores, axis=-1), step_inputs.half)
    rows = emit.call("Mul", emit.size(step_inputs.positions, 1), emit.constant([heads.group]))
    weights = emit.reshape(weights, [0, heads.kv, rows, -1], ["batch", heads.kv, "rows", "places"])
    joined = _read(emit, weights, (past_value, value), step_inputs.cache_positions)
    emit.replace(emit.cast(_joined(emit, joined, heads, step_inputs.positions), FLOAT))
    return key, value


def _split(emit: Emitter, node: ir.Node, heads: _Heads) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Query, key and value as float32[batch, tokens, heads, width]."""
    flat = node.inputs[:3]
    if flat[1] is None:
        lengths = emit.constant([heads.query * heads.width, heads.kv * heads.width, heads.kv * heads.width])
        flat = emit.calls("Split", [flat[0], lengths], 3, FLOAT, axis=-1)
    counts = heads.query, heads.kv, heads.kv
    query, key, value = (
        emit.reshape(part, [0, 0, count, heads.width], ["batch", "tokens", count, heads.width])
        for part, count in zip(flat, counts, strict=True)
        if part is not None
    )
    return query, key, value


def _rotate(emit: Emitter, x: ir.Value, node: ir.Node, positions: ir.Value) -> ir.Value:
    """The rotary embedding of the rotate-half form: x·cos + [-x₂, x₁]·sin."""
    tables = [table for table in node.inputs[7:9] if table is not None]
    half = fixed(tables[0])[1]
    cos, sin = (
        emit.call("Unsqueeze", emit.call("Gather", table, positions, dtype=FLOAT), emit.constant([2]), dtype=FLOAT)
        for table in tables
    )
    rest = _width(x) - 2 * half
    parts = [half, half, rest] if rest else [half, half]
    first, second, *kept = emit.calls("Split", [x, emit.constant(parts)], len(parts), FLOAT, axis=-1)
    turned = emit.call("Sub", emit.call("Mul", first, cos), emit.call("Mul", second, sin))
    other = emit.call("Add", emit.call("Mul", second, cos), emit.call("Mul", first, sin))
    return emit.call("Concat", turned, other, *kept, shape=sizes(x), axis=-1)


def _width(x: ir.Value) -> int:
    """Size of a head, a value's last."""
    return int(sizes(x)[-1])


def _by_head(emit: Emitter, x: ir.Value, heads: _Heads) -> ir.Value:
    """[batch, tokens, kv, width] -> [batch, kv, tokens, width]."""
    return emit.call("Transpose", x, shape=["batch", heads.kv, "tokens", heads.width], perm=[0, 2, 1, 3])


def _grouped(emit: Emitter, query: ir.Value, heads: _Heads) -> ir.Value:
    """[batch, tokens, heads, width] -> [batch, kv, tokens · group, width]: rows that multiply the same keys."""
    shape: list[int | str] = ["batch", "tokens", heads.kv, heads.group, heads.width]
    query = emit.reshape(query, [0, 0, heads.kv, heads.group, heads.width], shape)
    query = emit.call("Transpose", query, perm=[0, 2, 1, 3, 4])
    return emit.reshape(query, [0, heads.kv, -1, heads.width], ["batch", heads.kv, "rows", heads.width])


def _scores(emit: Emitter, query: ir.Value, keys: tuple[ir.Value, ir.Value], numbers: Mapping[str, float]) -> ir.Value:
    """Scores over the cache and then over the step's own tokens: float32[batch, kv, rows, kv_bucket + tokens]."""
    turned = keys[0], emit.call("Transpose", keys[1], perm=[0, 1, 3, 2])  # the cache keeps its keys turned
    products = [emit.call("MatMul", query, key) for key in turned]
    scores = emit.cast(emit.call("Concat", *products, axis=-1), FLOAT)
    if numbers["softcap"]:
        cap = emit.constant(numbers["softcap"], FLOAT)
        scores = emit.call("Mul", emit.call("Tanh", emit.call("Div", scores, cap)), cap)
    return scores


def _bias(emit: Emitter, step_inputs: Inputs, window: int) -> ir.Value:
    """0 where a token may look and -1e30 where not: float32[batch, 1, tokens, 1, kv_bucket + tokens].

    A position of the cache counts if it was written before this step, a token of the step if it is not later.
    """
    batch, tokens = emit.size(step_inputs.positions, 0), emit.size(step_inputs.positions, 1)
    here = emit.reshape(step_inputs.positions, [batch, 1, tokens, 1, 1], ["batch", 1, "tokens", 1, 1])
    mine = emit.reshape(step_inputs.positions, [batch, 1, 1, 1, tokens], ["batch", 1, 1, 1, "tokens"])
    start = emit.call("Slice", step_inputs.positions, emit.constant([0]), emit.constant([1]), emit.constant([1]))
    start = emit.reshape(start, [batch, 1, 1, 1, 1], ["batch", 1, 1, 1, 1])
    cached = emit.reshape(step_inputs.cache_positions, [1, 1, 1, 1, -1], [1, 1, 1, 1, "kv_bucket"])
    written = emit.call("Less", cached, start, dtype=ir.DataType.BOOL)
    earlier = emit.call("LessOrEqual", mine, here, dtype=ir.DataType.BOOL)
    parts = [_or_far(emit, seen, here, at, window) for seen, at in ((written, cached), (earlier, mine))]
    # Without a window all of a step's tokens see the same cached positions; the sum brings both parts to one shape.
    zero = emit.call("Cast", emit.call("Sub", here, here), dtype=FLOAT, to=FLOAT)
    return emit.call("Concat", *(emit.call("Add", part, zero) for part in parts), axis=-1)


def _or_far(emit: Emitter, seen: ir.Value, here: ir.Value, there: ir.Value, window: int) -> ir.Value:
    """0 or -1e30 from whether a place is seen, and is inside the window if there is one."""
    if window > 0:
        ago = emit.call("Sub", here, there)
        near = emit.call("Less", ago, emit.constant(window, ir.DataType.INT32), dtype=ir.DataType.BOOL)
        seen = emit.call("And", seen, near)
    return emit.call("Where", seen, emit.constant(0.0, FLOAT), emit.constant(FAR, FLOAT), dtype=FLOAT)


def _read(emit: Emitter, weights: ir.Value, values: tuple[ir.Value, ir.Value], places: ir.Value) -> ir.Value:
    """The values that the weights ask for: of the cache, and of the step's own tokens."""
    axis, zero = emit.constant([3]), emit.constant([0])
    bucket = emit.size(places, 0)
    end = emit.constant([2**31 - 1])
    parts = [
        emit.call("Slice", weights, zero, bucket, axis),
        emit.call("Slice", weights, bucket, end, axis),
    ]
    past, new = (emit.call("MatMul", part, value) for part, value in zip(parts, values, strict=True))
    return emit.call("Add", past, new)


def _joined(emit: Emitter, x: ir.Value, heads: _Heads, positions: ir.Value) -> ir.Value:
    """[batch, kv, tokens · group, width] -> [batch, tokens, heads · width]."""
    tokens = emit.size(positions, 1)
    x = emit.reshape(
        x, [0, heads.kv, tokens, heads.group, heads.width], ["batch", heads.kv, "tokens", heads.group, heads.width]
    )
    x = emit.call("Transpose", x, perm=[0, 2, 1, 3, 4])
    size = heads.query * heads.width
    return emit.reshape(x, [0, 0, size], ["batch", "tokens", size])

"""Attention over a cache in which the places of an image see all of their image.

The kernel of attention is causal: what it is given as a bias is added before what lies behind is left out. So a step
with places of images computes attention a second time, by plain operators and a mask, from what the kernel has put into
the cache. Steps without images run the kernel alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from adaptc.ir.marks import PATH, label
from adaptc.passes.emit import FLOAT, INT, Emitter

Described = tuple[ir.DataType, tuple[int | str, ...]]
"""Type and shape of a value."""

_BOOL = ir.DataType.BOOL
_HIDDEN = float(np.finfo(np.float32).min)
"""What is added to the score of a position that a token does not see."""


@dataclass(frozen=True, slots=True, eq=False)
class StepImages:
    """What a step's images decide for all layers.

    Attributes:
        there: bool [], whether the step has a place of an image.
        positions: int64 [batch, tokens], those of the step's tokens.
        total: int64 [1], positions of the cache that are seen.
        masks: By window, float32 [batch, 1, tokens, total], what is added to scores.
    """

    there: ir.Value
    positions: ir.Value
    total: ir.Value
    masks: Mapping[int, ir.Value]


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """An attention's heads, as its kernel reads them.

    Attributes:
        query: float32 [batch, tokens, heads · width], before its rotary embedding.
        heads: Heads of the query.
        kv_heads: Heads of keys and values.
        width: Of a head.
        turns: Tables of the rotary embedding, cos and sin; empty without one.
        neighbours: Whether a pair that is turned is two neighbours.
        scale: Factor on query · key.
        softcap: See `operators/attention.py`.
        window: The same.
    """

    query: ir.Value
    heads: int
    kv_heads: int
    width: int
    turns: tuple[ir.Value, ...]
    neighbours: bool
    scale: float
    softcap: float
    window: int


def step_images(
    main: ir.Graph, places: ir.Value, seqlens: ir.Value, total: ir.Value, windows: Sequence[int]
) -> StepImages:
    """Add to a decoder's graph what its images decide: an If that computes masks where there are any.

    Args:
        main: The graph, in place.
        places: int64 [places], which tokens of the step (batch · tokens) are of images; those in a row are of one.
        seqlens: int32 [batch], valid positions after the step, minus 1.
        total: int32 [], the largest number of them.
        windows: Of the layers; 0 for one without.
    """
    emit = Emitter(main, next(iter(main)))
    count = emit.call("Size", places, dtype=INT, shape=[])
    there = emit.call("Greater", count, emit.constant(0), dtype=_BOOL, shape=[])
    whole = emit.call("Unsqueeze", emit.call("Cast", total, dtype=INT, shape=[], to=INT), emit.constant([0]), shape=[1])
    table = emit.call("Shape", main.inputs[0], dtype=INT, shape=[2], start=0, end=2)
    shapes: list[Described] = [(INT, ("batch", "tokens"))]
    shapes += [(FLOAT, ("batch", 1, "tokens", "total")) for _ in windows]

    def seen(new: Emitter) -> list[ir.Value]:
        first = _first_positions(new, table, seqlens)
        index = new.call("Range", new.constant(0), _last(new, table), new.constant(1), dtype=INT, shape=["tokens"])
        positions = new.call("Add", first, index)
        ends = new.call("Add", first, _ends(new, places, table, index))
        return [positions, *(_mask(new, positions, ends, whole, window) for window in windows)]

    def nothing(new: Emitter) -> list[ir.Value]:
        empty = new.constant(np.zeros((0, 1, 0, 0)), FLOAT)
        return [new.constant(np.zeros((0, 0))), *(new.call("Identity", empty) for _ in windows)]

    positions, *masks = _chosen(main, emit.before, "images", there, seen, nothing, shapes)
    return StepImages(there, positions, whole, dict(zip(windows, masks, strict=True)))


def seeing_images(
    main: ir.Graph, before: ir.Node, step: StepImages, heads: Heads, result: ir.Value, cache: Sequence[ir.Value]
) -> ir.Value:
    """The result of an attention in which images are seen whole: [batch, tokens, heads · width].

    Args:
        main: The graph, in place.
        before: The attention over whole sequences, behind the kernel.
        step: As `step_images` gives it.
        heads: What the kernel reads.
        result: What the kernel gives.
        cache: Keys and values after the step, [batch, kv_heads, max_tokens, width].
    """

    def attended(new: Emitter) -> list[ir.Value]:
        flat = new.call("Reshape", heads.query, new.constant([0, 0, heads.heads, heads.width]))
        query = new.call("Transpose", flat, perm=[0, 2, 1, 3])
        if heads.turns:
            turned, pairs = _turned(heads), int(heads.neighbours)
            tables = *heads.turns, step.positions
            query = new.call("RotaryEmbedding", query, *tables, interleaved=pairs, rotary_embedding_dim=turned)
        key, value = (_valid(new, each, step.total) for each in cache)
        scaled = new.call("Mul", query, new.constant(heads.scale, FLOAT))
        grouped = new.call("Reshape", scaled, new.constant([0, heads.kv_heads, -1, heads.width]))
        scores = new.call("MatMul", grouped, new.call("Transpose", key, perm=[0, 1, 3, 2]))
        scores = _rows(new, scores, heads.heads, step.total)
        if heads.softcap:
            cap = new.constant(heads.softcap, FLOAT)
            scores = new.call("Mul", new.call("Tanh", new.call("Div", scores, cap)), cap)
        weights = new.call("Softmax", new.call("Add", scores, step.masks[heads.window]), axis=-1)
        out = new.call("MatMul", _rows(new, weights, heads.kv_heads, step.total), value)
        by_head = new.call("Reshape", out, new.constant([0, heads.heads, -1, heads.width]))
        back = new.call("Transpose", by_head, perm=[0, 2, 1, 3])
        return [new.call("Reshape", back, new.constant([0, 0, heads.heads * heads.width]))]

    def as_it_is(new: Emitter) -> list[ir.Value]:
        return [new.call("Identity", result)]

    shape = "batch", "tokens", heads.heads * heads.width
    [chosen] = _chosen(main, before, "images", step.there, attended, as_it_is, [(FLOAT, shape)])
    return chosen


def _chosen(
    main: ir.Graph,
    before: ir.Node,
    name: str,
    condition: ir.Value,
    then: Callable[[Emitter], list[ir.Value]],
    otherwise: Callable[[Emitter], list[ir.Value]],
    results: Sequence[Described],
) -> Sequence[ir.Value]:
    """An If before a node; `results` are the types and shapes of what it gives."""
    stem = f"{before.name}/{name}"
    sides = {
        side: _branch(make, f"{stem}/{side}", label(before))
        for side, make in (("then_branch", then), ("else_branch", otherwise))
    }
    node = ir.node("If", [condition], sides, num_outputs=len(results), name=f"{stem}/If")
    node.metadata_props[PATH] = label(before)
    for index, (value, (dtype, shape)) in enumerate(zip(node.outputs, results, strict=True)):
        value.name = f"{node.name}:{index}"
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
    main.insert_before(before, node)
    return node.outputs


def _branch(make: Callable[[Emitter], list[ir.Value]], name: str, path: str) -> ir.Graph:
    """A branch of an If, of the nodes that `make` adds."""
    end = ir.node("Identity", [None], name=name, metadata_props={PATH: path})
    graph = ir.Graph([], [], nodes=[end], name=name)
    results = make(Emitter(graph, end))
    graph.remove(end)
    graph.outputs.extend(results)
    return graph


def _first_positions(new: Emitter, table: ir.Value, seqlens: ir.Value) -> ir.Value:
    """The position of each row's first token in the step: int64 [batch, 1]."""
    last = new.call("Unsqueeze", new.call("Cast", seqlens, dtype=INT, to=INT), new.constant([1]))
    return new.call("Add", new.call("Sub", last, _last(new, table)), new.constant([1]), shape=["batch", 1])


def _last(new: Emitter, table: ir.Value) -> ir.Value:
    """The tokens of a step, of its batch and tokens: int64 []."""
    return new.call("Gather", table, new.constant(1), dtype=INT, shape=[], axis=0)


def _ends(new: Emitter, places: ir.Value, table: ir.Value, index: ir.Value) -> ir.Value:
    """Up to which index of the step each token sees: its own, or its image's last one: int64 [batch, tokens]."""
    words = new.call("Expand", new.constant(1), table)
    line = new.call("Reshape", words, new.constant([-1]))
    marks = new.call("Mul", places, new.constant(0))
    marked = new.call("ScatterND", line, new.call("Unsqueeze", places, new.constant([1])), marks)
    words = new.call("Reshape", marked, table, shape=["batch", "tokens"])
    run = new.call("CumSum", words, new.constant(1))  # the same for all of a run of places
    image = new.call("Less", words, new.constant(1), dtype=_BOOL)
    rows, columns = new.constant([2]), new.constant([1])
    both = new.call("And", new.call("Unsqueeze", image, rows), new.call("Unsqueeze", image, columns))
    same = new.call("Equal", new.call("Unsqueeze", run, rows), new.call("Unsqueeze", run, columns), dtype=_BOOL)
    seen = new.call("Where", new.call("And", both, same), index, new.constant(-1), dtype=INT)
    last = new.call("ReduceMax", seen, new.constant([2]), keepdims=0)
    return new.call("Max", last, index, shape=["batch", "tokens"])


def _mask(new: Emitter, positions: ir.Value, ends: ir.Value, total: ir.Value, window: int) -> ir.Value:
    """What is added to scores: 0 for a position that a token sees: float32 [batch, 1, tokens, total]."""
    axes = new.constant([1, 3])
    size = new.call("Squeeze", total, new.constant([0]))
    keys = new.call("Range", new.constant(0), size, new.constant(1), dtype=INT, shape=["total"])
    seen = new.call("LessOrEqual", keys, new.call("Unsqueeze", ends, axes), dtype=_BOOL)
    if window:
        oldest = new.call("Sub", new.call("Unsqueeze", positions, axes), new.constant(window))
        seen = new.call("And", seen, new.call("Greater", keys, oldest, dtype=_BOOL))
    return new.call("Where", seen, new.constant(0.0, FLOAT), new.constant(_HIDDEN, FLOAT), dtype=FLOAT)


def _valid(new: Emitter, cached: ir.Value, total: ir.Value) -> ir.Value:
    """The keys or values of a cache that are valid: float32 [batch, kv_heads, total, width]."""
    kept = new.call("Slice", cached, new.constant([0]), total, new.constant([2]))
    kept.type = None  # that of the cache, which `quantize_cache` changes
    return new.call("Cast", kept, dtype=FLOAT, to=int(FLOAT))


def _rows(new: Emitter, values: ir.Value, heads: int, total: ir.Value) -> ir.Value:
    """Values of pairs of tokens, by so many heads: [batch, heads, rows, total]."""
    shape = new.call("Concat", new.constant([0, heads, -1]), total, dtype=INT, shape=[4], axis=0)
    return new.call("Reshape", values, shape)


def _turned(heads: Heads) -> int:
    """How many numbers of a head are turned."""
    shape = heads.turns[0].shape
    assert shape is not None, "tables are made with their shapes"
    return 2 * int(shape[1])  # type: ignore[arg-type]

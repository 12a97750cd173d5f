"""verify_drafts: beside each decoder a graph that reads several tokens of one sequence as steps would, in one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from adaptc.ir.onnx_graph import OnnxGraph, sizes
from adaptc.ir.program import Program
from adaptc.passes.base import Pass
from adaptc.passes.decoder.kv_cache import ATTENTION, BIAS, LENGTHS, PAST, TOTAL, TURNED_BY, layer_of
from adaptc.passes.emit import INT, Emitter
from adaptc.runtime.bundle.manifest import VerificationGraph
from adaptc.runtime.bundle.names import (
    CACHE_KINDS,
    POSITION_IDS,
    ROWS,
    SEQLENS_K,
    cache_tensor,
    present,
    present_after,
    verification_graph,
)

_OWN = PAST
"""The inputs of the kernel before the cache are of the tokens; all others are of the sequence."""


@dataclass(frozen=True, slots=True)
class VerifyDrafts(Pass):
    """Add graphs in which the rows of a step are successive tokens of one sequence.

    Before:  o, present = GroupQueryAttention(x, past, …), for one token of each of many sequences
    After:   the same; and in `GRAPH.verifyN`, over x[rows] = x₀ … xₙ:
             oᵢ, presentᵢ = GroupQueryAttention(xᵢ, presentᵢ₋₁, …); o = [o₀ … oₙ]

    Speculative decoding checks drafted tokens in one run. A kernel of attention that is given several tokens of a
    sequence rounds otherwise than one that is given each by itself, and integer activations make that visible in the
    logits. So attention is computed token by token, by the very kernel that a step runs, while all products with
    weights, which are what a step costs, are computed for all rows at once, as they are for a batch. Every output is
    bound to the one buffer of the cache, so nothing is copied and the order is that of the data.

    Needs: ONNX level, last: it repeats the graph as it is.
    Shapes: input_ids int64[tokens, 1]; rows int64[n], the row of each call of the kernel, where a row that is there
            twice is computed twice to the same end; seqlens_k int32[n]; past.i.key float32[1, kv_heads, max_tokens,
            head_dim]; present.i.key.j, of all calls but the last.
    Cost: a graph without weights of its own, some hundred kilobytes; a call of the kernel for each layer and row.

    Attributes:
        sizes: For how many tokens graphs are made; a smaller one is quicker for few tokens.

    Reference: Leviathan, Kalman, Matias 2023, "Fast Inference from Transformers via Speculative Decoding".
    """

    name: ClassVar[str] = "verify_drafts"
    sizes: tuple[int, ...] = (4, 8)

    def apply(self, program: Program) -> Program:
        made = dict(program.verification)
        for name, graph in program.at_level(OnnxGraph).items():
            if name in made or name in program.adapted or name == program.draft or not _fits(graph.model.graph):
                continue
            for size in self.sizes:
                program = program.with_graph(verification_graph(name, size), unrolled(graph, size))
            made[name] = tuple(VerificationGraph(size, verification_graph(name, size)) for size in self.sizes)
        return program if made.keys() == program.verification.keys() else replace(program, verification=made)


def _fits(graph: ir.Graph) -> bool:
    """Whether a graph reads a sequence by a cache, and a position of it is its index in the sequence."""
    names = {value.name for value in graph.inputs}
    return SEQLENS_K in names and not names & {ROWS, POSITION_IDS} and any(node.op_type == ATTENTION for node in graph)


def unrolled(graph: OnnxGraph, size: int) -> OnnxGraph:
    """A fork that reads up to `size` tokens of one sequence as that many steps would.

    Raises:
        PassError: an attention reads the cache of no layer.
    """
    fork = graph.fork()
    main = fork.model.graph
    rows = ir.Value(name=ROWS, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([size]))
    main.inputs.append(rows)
    attentions = [node for node in main if node.op_type == ATTENTION]
    seqlens = next(value for value in main.inputs if value.name == SEQLENS_K)
    new, opening = Emitter(main, attentions[0]), Emitter(main, next(iter(main)))
    lengths: dict[ir.Value | None, Sequence[ir.Value]] = {}
    for value in dict.fromkeys([seqlens, *(node.inputs[LENGTHS] for node in attentions)]):
        assert value is not None
        value.shape = ir.Shape([size])
        lengths[value] = _rows_of(new if value is seqlens else opening, value, size)
    first = main.inputs[0]
    count = new.call("Shape", first, dtype=ir.DataType.INT64, shape=[1], start=0, end=1)
    for node in attentions:
        _unroll(main, node, rows, lengths[node.inputs[LENGTHS]], count)
    others = [use for use in seqlens.uses() if use.node is not lengths[seqlens][0].producer()]
    if others:  # positions are counted of as many tokens as there are
        start = next(iter(main))
        here = Emitter(main, start)
        zero = here.constant([0])
        there = here.call("Slice", seqlens, zero, here.call("Shape", first, dtype=INT, shape=[1], start=0, end=1), zero)
        for use in others:
            use.node.replace_input_with(use.idx, there)
    for value in (*main.inputs, *main.outputs):
        if cache_tensor(value.name) is not None:
            value.shape = ir.Shape([1, *sizes(value)[1:]])
    return fork


def _unroll(main: ir.Graph, node: ir.Node, rows: ir.Value, lengths: Sequence[ir.Value], count: ir.Value) -> None:
    """Put a chain of calls, one for each row, in the place of an attention."""
    new, size = Emitter(main, node), len(lengths)
    own = [None if value is None else _split(new, value, rows, size) for value in node.inputs[:_OWN]]
    past = [*node.inputs[_OWN : _OWN + len(CACHE_KINDS)]]
    layer = layer_of(node)
    rest = [*node.inputs[TOTAL:]]
    by_row = {
        place: _split(new, value, rows, size)
        for place in (TURNED_BY, BIAS)
        if len(node.inputs) > place and (value := node.inputs[place]) is not None
    }
    results = []
    for index, length in enumerate(lengths):
        last = index == size - 1
        for place, values in by_row.items():
            rest[place - TOTAL] = values[index]
        call = ir.node(
            ATTENTION,
            [*(None if each is None else each[index] for each in own), *past, length, *rest],
            dict(node.attributes),
            domain=node.domain,
            num_outputs=1 + len(CACHE_KINDS),
            name=f"{node.name}/{index}",
            metadata_props=dict(node.metadata_props),
        )
        names = [present(layer, kind) if last else present_after(layer, kind, index) for kind in CACHE_KINDS]
        for value, old, name in zip(
            call.outputs, node.outputs, (f"{node.outputs[0].name}/{index}", *names), strict=True
        ):
            value.name, value.type = name, old.type
            value.shape = ir.Shape([1, *sizes(old)[1:]])
        main.insert_before(node, call)
        results.append(call.outputs[0])
        if last:
            for value, old in zip(call.outputs[1:], node.outputs[1:], strict=True):
                old.name = f"{old.name}:before"
                old.replace_all_uses_with(value, replace_graph_outputs=True)
        else:
            main.outputs.extend(call.outputs[1:])
        past = [*call.outputs[1:]]
    joined = new.call("Concat", *results, shape=[size, *sizes(node.outputs[0])[1:]], axis=0)
    start, axis = new.constant([0]), new.constant([0])
    new.replace(new.call("Slice", joined, start, count, axis))


def _split(new: Emitter, value: ir.Value, rows: ir.Value, size: int) -> Sequence[ir.Value]:
    """What each call reads of a value: [1, 1, width]."""
    return _rows_of(new, new.call("Gather", value, rows, shape=[size, *sizes(value)[1:]], axis=0), size)


def _rows_of(new: Emitter, value: ir.Value, size: int) -> Sequence[ir.Value]:
    """A value cut along its first axis, which has that size."""
    parts = new.calls("Split", [value], size, None, axis=0, num_outputs=size)
    for part in parts:
        part.shape = ir.Shape([1, *sizes(value)[1:]])
    return parts

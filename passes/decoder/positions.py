"""The positions of a step's tokens, where a decoder reads them by itself: an embedding of positions is looked up."""

from __future__ import annotations

import onnx_ir as ir

from adaptc.passes.emit import INT, Emitter
from adaptc.runtime.bundle.names import HIDDEN, INPUT_IDS, POSITION_IDS

STEP_POSITIONS = "step_positions"
"""The value that counts them: a target that is given positions takes those."""


def count_positions(graph: ir.Graph, seqlens: ir.Value, max_tokens: int) -> None:
    """Count positions from how many tokens a row has after the step, where something still reads `position_ids`.

    Args:
        graph: A decoder's graph, in place.
        seqlens: int32[batch], valid positions after the step, minus 1; rows that are not used may have any number.
        max_tokens: Positions of the cache.
    """
    given = {value.name: value for value in graph.inputs}
    positions = given.get(POSITION_IDS)
    if positions is None or not positions.uses():
        return
    emit = Emitter(graph, next(iter(graph)))
    counted = counted_positions(emit, seqlens)
    bounds = emit.constant(0), emit.constant(max_tokens - 1)
    result = emit.call("Clip", counted, *bounds, dtype=INT, shape=["batch", "tokens"])
    result.name = STEP_POSITIONS
    positions.replace_all_uses_with(result)


def counted_positions(emit: Emitter, seqlens: ir.Value) -> ir.Value:
    """Positions of a step's tokens, by how many tokens a row has after it: int64 [batch, tokens].

    Args:
        emit: Where to count.
        seqlens: As in `count_positions`.
    """
    given = {value.name: value for value in emit.graph.inputs}
    tokens = emit.call("Shape", given.get(INPUT_IDS) or given.get(HIDDEN), dtype=INT, shape=[1], start=1, end=2)
    count = emit.call("Squeeze", tokens, dtype=INT, shape=[])
    places = emit.call("Range", emit.constant(0), count, emit.constant(1), dtype=INT, shape=["tokens"])
    last = emit.call("Unsqueeze", emit.call("Cast", seqlens, dtype=INT, shape=["batch"], to=INT), emit.constant([1]))
    first = emit.call("Add", emit.call("Sub", last, tokens), emit.constant([1]), shape=["batch", 1])
    return emit.call("Add", first, places, shape=["batch", "tokens"])

"""Attention in chunks over a cache: what is added to scores, so that a token sees none of an earlier chunk."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from adaptc.passes.decoder.positions import counted_positions
from adaptc.passes.emit import FLOAT, INT, Emitter

_HIDDEN = float(np.finfo(np.float32).min)
"""What is added to the score of a position that a token does not see."""


def chunk_bias(graph: ir.Graph, seqlens: ir.Value, total: ir.Value, chunk: int) -> ir.Value:
    """Add to a decoder's graph what its attentions in chunks add to scores.

    The kernel leaves out by itself what lies behind a token.

    Args:
        graph: A decoder's graph, in place.
        seqlens: int32 [batch], valid positions after the step, minus 1.
        total: int32 [], the largest number of them.
        chunk: Positions of a chunk.

    Returns:
        float32 [batch, 1, tokens, total]: 0 for a position of a token's chunk.
    """
    emit = Emitter(graph, next(iter(graph)))
    positions = counted_positions(emit, seqlens)
    zero, one, size = emit.constant(0), emit.constant(1), emit.constant(chunk)
    whole = emit.call("Cast", total, dtype=INT, shape=[], to=INT)
    places = emit.call("Range", zero, whole, one, dtype=INT, shape=["total"])
    looks = emit.call("Unsqueeze", emit.call("Div", positions, size), emit.constant([1, 3]))
    seen = emit.call("Equal", looks, emit.call("Div", places, size), dtype=ir.DataType.BOOL)
    bias = emit.call("Where", seen, emit.constant(0.0, FLOAT), emit.constant(_HIDDEN, FLOAT), dtype=FLOAT)
    bias.shape = ir.Shape(["batch", 1, "tokens", "total"])
    return bias

"""Heads of a width that the attention kernel lacks: zeros fill them up, and their results are cut again.

RoPE turns number i of a head with number i + width / 2, so each half of a head is filled up by itself; where it
turns neighbours, or a part of a head, or nothing, a head is filled up at its end. Zeros add
nothing to the products of queries and keys, and what they give of the values is cut away: the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir


def padded_width(width: int, multiple: int) -> int:
    """Return the next width that is a whole multiple."""
    return -(-width // multiple) * multiple


def padded(
    main: ir.Graph, before: ir.Node, value: ir.Value, heads: int, width: int, to: int, pieces: int = 2
) -> ir.Value:
    """Fill up each piece of each head: [batch, tokens, heads · width] becomes [batch, tokens, heads · to].

    Args:
        main: The graph.
        before: The attention that reads the value; the new nodes come before it.
        value: Query, key or value.
        heads: How many heads it has.
        width: How wide they are.
        to: How wide they become; even, as `width` is.
        pieces: 2 if RoPE turns the first half of a head with the second, else 1.
    """
    if width == to:
        return value
    halves = _reshaped(main, before, value, f"{value.name}/halves", [0, 0, pieces * heads, width // pieces])
    pads = _constant(main, before, f"{value.name}/pads", [0, (to - width) // pieces])
    axes = _constant(main, before, f"{value.name}/axes", [-1])
    filled = _node(main, before, "Pad", [halves, pads, None, axes], f"{value.name}/padded", value.type)
    filled.shape = ir.Shape(["batch", "tokens", pieces * heads, to // pieces])
    return _reshaped(main, before, filled, f"{value.name}/wide", [0, 0, heads * to])


def cut(
    main: ir.Graph, before: ir.Node, value: ir.Value, heads: int, width: int, to: int, pieces: int = 2
) -> ir.Value:
    """Undo `padded` on the attention's result: [batch, tokens, heads · width] becomes [batch, tokens, heads · to]."""
    if width == to:
        return value
    halves = _reshaped(main, before, value, f"{value.name}/halves", [0, 0, pieces * heads, width // pieces])
    bounds = [_constant(main, before, f"{value.name}/{name}", [at]) for name, at in (("from", 0), ("to", to // pieces))]
    axes = _constant(main, before, f"{value.name}/axes", [-1])
    kept = _node(main, before, "Slice", [halves, *bounds, axes], f"{value.name}/cut", value.type)
    kept.shape = ir.Shape(["batch", "tokens", pieces * heads, to // pieces])
    return _reshaped(main, before, kept, f"{value.name}/narrow", [0, 0, heads * to])


def padded_table(table: npt.NDArray[np.float32], to: int, fill: float) -> npt.NDArray[np.float32]:
    """Fill up a RoPE table, float32[positions, width / 2], to half of a new width."""
    missing = to // 2 - table.shape[1]
    return np.pad(table, ((0, 0), (0, missing)), constant_values=fill)


def _reshaped(main: ir.Graph, before: ir.Node, value: ir.Value, name: str, sizes: Sequence[int]) -> ir.Value:
    shape = _constant(main, before, f"{name}/shape", sizes)
    result = _node(main, before, "Reshape", [value, shape], name, value.type)
    result.shape = ir.Shape(["batch", "tokens", *sizes[2:]])
    return result


def _constant(main: ir.Graph, before: ir.Node, name: str, values: Sequence[int]) -> ir.Value:
    result = _node(main, before, "Constant", [], name, ir.TensorType(ir.DataType.INT64))
    node = result.producer()
    assert node is not None
    node.attributes["value_ints"] = ir.AttrInt64s("value_ints", list(values))
    result.shape = ir.Shape([len(values)])
    return result


def _node(
    main: ir.Graph,
    before: ir.Node,
    operator: str,
    inputs: Sequence[ir.Value | None],
    name: str,
    type_: ir.TypeProtocol | None,
) -> ir.Value:
    """A new node before another, which gives its module path; its one result has the node's name."""
    node = ir.node(operator, inputs, name=name, metadata_props=dict(before.metadata_props))
    node.outputs[0].name, node.outputs[0].type = name, type_
    main.insert_before(before, node)
    return node.outputs[0]

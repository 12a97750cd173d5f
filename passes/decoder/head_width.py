"""Heads of a width that the attention kernel lacks: zeros fill them up, and their results are cut again.

RoPE turns number i of a head with number i + width / 2, so each half of a head is filled up by itself; where it turns
neighbours or nothing, a head is filled up at its end; where it turns a part, the halves of that and the rest are. Zeros
add nothing to the products of queries and keys, and what they give of the values is cut away: the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from adaptc.passes.decoder.attention_parts import Rotation

Pieces = tuple[tuple[int, int], ...]
"""How a head is cut, in order: the width of each piece, and what it is filled up to."""


def padded_width(width: int, multiple: int) -> int:
    """Return the next width that is a whole multiple."""
    return -(-width // multiple) * multiple


def pieces_of(width: int, rope: Rotation | None, multiple: int) -> Pieces:
    """Return how heads are filled up so that they, and what RoPE turns of them, are whole multiples.

    Args:
        width: Of a head.
        rope: What turns it, if anything does.
        multiple: Of what the kernel takes widths.
    """
    to = padded_width(width, multiple)
    if rope is None or rope.neighbours:
        return ((width, to),)
    half = rope.pairs, padded_width(2 * rope.pairs, multiple) // 2
    rest = width - 2 * half[0]
    if not rest:
        return (half, half)
    return (half, half, (rest, padded_width(2 * half[1] + rest, multiple) - 2 * half[1]))


def padded(main: ir.Graph, before: ir.Node, value: ir.Value, heads: int, pieces: Pieces) -> ir.Value:
    """Fill up each piece of each head with zeros.

    Args:
        main: The graph.
        before: The attention that reads the value; the new nodes come before it.
        value: Query, key or value, [batch, tokens, heads · width].
        heads: How many heads it has.
        pieces: As `pieces_of` gives them.

    Returns:
        [batch, tokens, heads · new width].
    """
    width, to = _widths(pieces)
    if width == to:
        return value
    if len(set(pieces)) > 1:
        zero = sum(old for old, _ in pieces)  # the place of the zero that is put behind each head
        places, start = [], 0
        for old, new in pieces:
            places += [*range(start, start + old), *[zero] * (new - old)]
            start += old
        value = _filled(main, before, value, heads, (width, width + 1))
        return _picked(main, before, value, heads, width + 1, places)
    [(old, new)] = set(pieces)
    return _reshaped_filled(main, before, value, heads, len(pieces), (old, new))


def cut(main: ir.Graph, before: ir.Node, value: ir.Value, heads: int, pieces: Pieces) -> ir.Value:
    """Undo `padded` on the attention's result."""
    width, to = _widths(pieces)
    if width == to:
        return value
    if len(set(pieces)) > 1:
        places, start = list[int](), 0
        for old, new in pieces:
            places += range(start, start + old)
            start += new
        return _picked(main, before, value, heads, to, places)
    count, [(old, new)] = len(pieces), set(pieces)
    halves = _reshaped(main, before, value, f"{value.name}/halves", [0, 0, count * heads, new])
    bounds = [_constant(main, before, f"{value.name}/{name}", [at]) for name, at in (("from", 0), ("to", old))]
    axes = _constant(main, before, f"{value.name}/axes", [-1])
    kept = _node(main, before, "Slice", [halves, *bounds, axes], f"{value.name}/cut", value.type)
    kept.shape = ir.Shape(["batch", "tokens", count * heads, old])
    return _reshaped(main, before, kept, f"{value.name}/narrow", [0, 0, heads * width])


def _widths(pieces: Pieces) -> tuple[int, int]:
    """The width of a head, and what it becomes."""
    return sum(old for old, _ in pieces), sum(new for _, new in pieces)


def _reshaped_filled(
    main: ir.Graph, before: ir.Node, value: ir.Value, heads: int, count: int, piece: tuple[int, int]
) -> ir.Value:
    """Fill up `count` equal pieces of each head, and join all heads again."""
    filled = _filled(main, before, value, count * heads, piece)
    return _reshaped(main, before, filled, f"{value.name}/wide", [0, 0, count * heads * piece[1]])


def _filled(main: ir.Graph, before: ir.Node, value: ir.Value, count: int, piece: tuple[int, int]) -> ir.Value:
    """[batch, tokens, count · old] as [batch, tokens, count, new], with zeros at the end of each piece."""
    old, new = piece
    halves = _reshaped(main, before, value, f"{value.name}/halves", [0, 0, count, old])
    pads = _constant(main, before, f"{value.name}/pads", [0, new - old])
    axes = _constant(main, before, f"{value.name}/axes", [-1])
    filled = _node(main, before, "Pad", [halves, pads, None, axes], f"{value.name}/padded", value.type)
    filled.shape = ir.Shape(["batch", "tokens", count, new])
    return filled


def _picked(
    main: ir.Graph, before: ir.Node, value: ir.Value, heads: int, width: int, places: Sequence[int]
) -> ir.Value:
    """Some numbers of each head, in order: [batch, tokens, heads · places]."""
    apart = value
    if len(value.shape or ()) == 3:
        apart = _reshaped(main, before, value, f"{value.name}/apart", [0, 0, heads, width])
    which = _constant(main, before, f"{value.name}/places", places)
    picked = _node(main, before, "Gather", [apart, which], f"{value.name}/picked", value.type)
    producer = picked.producer()
    assert producer is not None
    producer.attributes["axis"] = ir.AttrInt64("axis", 3)
    picked.shape = ir.Shape(["batch", "tokens", heads, len(places)])
    return _reshaped(main, before, picked, f"{value.name}/wide", [0, 0, heads * len(places)])


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

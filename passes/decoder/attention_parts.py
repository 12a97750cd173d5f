"""Query, key and value of an attention before their rotary embedding, as the attention kernel reads them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from adaptc.errors import PassError
from adaptc.ir.marks import label


@dataclass(frozen=True, slots=True)
class Rotation:
    """A rotary embedding.

    Attributes:
        tables: Names of the cos and sin values.
        pairs: How many pairs of numbers of a head it turns.
        neighbours: Whether a pair is two neighbours; else it is number i and number i + pairs.
    """

    tables: tuple[str, str]
    pairs: int
    neighbours: bool


@dataclass(frozen=True, slots=True)
class HeadsPart:
    """Query, key or value before its rotary embedding.

    Attributes:
        source: float[batch, tokens, heads, width], or already flat [batch, tokens, heads · width].
        heads: Number of heads.
        width: Size of a head.
        rope: What turns it, if anything does.
    """

    source: ir.Value
    heads: int
    width: int
    rope: Rotation | None

    @property
    def size(self) -> int:
        """Width of all heads together."""
        return self.heads * self.width


def unrotated(main: ir.Graph, value: ir.Value | None, attention: ir.Node) -> HeadsPart:
    """Follow query, key or value back through RotaryEmbedding and the head transpose; else turn it back."""
    rope = None
    producer = value.producer() if value is not None else None
    if value is None or value.shape is None:
        raise PassError(f"{label(attention)}: query, key and value must be of known shapes")
    heads, width = (_static(value.shape[axis], attention) for axis in (1, 3))
    if producer is not None and producer.op_type == "RotaryEmbedding":
        inner, cos, sin = producer.inputs[:3]
        assert inner is not None
        assert cos is not None
        assert sin is not None
        part = producer.attributes.get_int("rotary_embedding_dim", 0) or width
        rope = Rotation(
            (cos.name or "", sin.name or ""), part // 2, bool(producer.attributes.get_int("interleaved", 0))
        )
        value, producer = inner, inner.producer()
    if producer is not None and producer.op_type == "RMSNormalization":
        value = _norm_before_transpose(producer)
        producer = value.producer()
    if producer is not None and producer.op_type == "Transpose":
        source = producer.inputs[0]
        assert source is not None
        return HeadsPart(source, heads, width, rope)
    back = ir.node("Transpose", [value], {"perm": [0, 2, 1, 3]}, metadata_props=dict(attention.metadata_props))
    back.name = back.outputs[0].name = f"{attention.name}/Transpose_{value.name}"
    back.outputs[0].type = value.type
    back.outputs[0].shape = ir.Shape(["batch", "tokens", heads, width])
    main.insert_before(attention, back)
    return HeadsPart(back.outputs[0], heads, width, rope)


def _norm_before_transpose(norm: ir.Node) -> ir.Value:
    """Gemma 3 norms heads after transposing them; over the last axis the order is all the same."""
    transpose = norm.inputs[0].producer() if norm.inputs[0] is not None else None
    result = norm.outputs[0]
    if transpose is None or transpose.op_type != "Transpose" or transpose.inputs[0] is None:
        return result
    before = ir.node(
        "RMSNormalization",
        [transpose.inputs[0], norm.inputs[1]],
        dict(norm.attributes),
        name=f"{norm.name}/swapped",
        metadata_props=dict(norm.metadata_props),
    )
    after = ir.node("Transpose", [before.outputs[0]], dict(transpose.attributes), name=f"{before.name}/Transpose")
    after.metadata_props.update(norm.metadata_props)
    before.outputs[0].name, before.outputs[0].type = before.name, result.type
    before.outputs[0].shape = transpose.inputs[0].shape
    after.outputs[0].name, after.outputs[0].type, after.outputs[0].shape = after.name, result.type, result.shape
    assert norm.graph is not None
    norm.graph.insert_before(norm, [before, after])
    return after.outputs[0]


def flat(main: ir.Graph, before: ir.Node, part: HeadsPart) -> ir.Value:
    """The part as [batch, tokens, heads · width]: usually what a projection gave before it was split into heads."""
    producer = part.source.producer()
    if producer is not None and producer.op_type == "Reshape":
        whole = producer.inputs[0]
        if whole is not None and whole.shape is not None and whole.shape[-1] == part.size and len(whole.shape) == 3:
            return whole
    shape = ir.node("Constant", [], {"value_ints": [0, 0, part.size]})
    reshape = ir.node("Reshape", [part.source, shape.outputs[0]], metadata_props=dict(before.metadata_props))
    for node in (shape, reshape):
        node.outputs[0].name = f"{before.name}/{node.op_type}_{part.source.name}"
        node.name = node.outputs[0].name
    reshape.outputs[0].type, reshape.outputs[0].shape = (
        part.source.type,
        ir.Shape(["batch", "tokens", part.size]),
    )
    main.insert_before(before, [shape, reshape])
    return reshape.outputs[0]


def _static(size: object, node: ir.Node) -> int:
    if not isinstance(size, int):
        raise PassError(f"{label(node)}: heads and head size must be fixed; found {size}")
    return size

"""encoder_attention: attention with padding becomes one kernel over what projections give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from adaptc.errors import PassError
from adaptc.ir.marks import label
from adaptc.ir.onnx_graph import OnnxGraph, sizes
from adaptc.ir.onnx_ops import is_encoder_attention
from adaptc.ir.program import Program
from adaptc.passes.base import Pass
from adaptc.passes.decoder.attention_parts import HeadsPart, flat, unrotated

MASK = 3
"""Place of the mask among an attention's inputs, where there is padding."""

LEAST = -3.4028234663852886e38
"""What hides a position: the least number of float32, as transformers has it."""


@dataclass(frozen=True, slots=True)
class EncoderAttention(Pass):
    """Give each attention of an encoder ONNX Runtime's kernel, which takes heads side by side and skips padding.

    Before:  o = EncoderAttention(RoPE(heads(q)), RoPE(heads(k)), heads(v), mask)
    After:   o = MultiHeadAttention(RoPE(q), RoPE(k), v, mask)

    Heads are no longer taken apart and put together around the kernel. Where positions see their neighbours alone, one
    table for all layers hides the others.

    Needs: ONNX level, after lower.
    Shapes: unchanged; of padding, whatever comes out.

    Raises:
        PassError: the heads of an attention are not joined by one Reshape.

    Reference: MultiHeadAttention, onnxruntime contrib operators, com.microsoft version 1.
    """

    name: ClassVar[str] = "encoder_attention"

    def apply(self, program: Program) -> Program:
        for name, graph in program.at_level(OnnxGraph).items():
            if any(map(is_encoder_attention, graph.model.graph)):
                fork = graph.fork()
                fork.model.opset_imports["com.microsoft"] = 1
                _rewrite(fork.model)
                program = program.with_graph(name, fork)
        return program


def _rewrite(model: ir.Model) -> None:
    main = model.graph
    shared = _Shared(main)
    for node in [each for each in main if is_encoder_attention(each)]:
        parts = [unrotated(main, value, node) for value in node.inputs[:3]]
        query, key, value = (_turned(main, node, at, part) for at, part in enumerate(parts))
        reach = node.attributes.get_int("reach", 0)
        padding = shared.padding(node) if len(node.inputs) > MASK else None
        inputs = [query, key, value, None, padding, shared.hidden(node, reach) if reach else None]
        while inputs[-1] is None:
            inputs.pop()
        scale = node.attributes.get_float("scale", parts[0].width ** -0.5)
        fused = ir.node(
            "MultiHeadAttention",
            inputs,
            {"num_heads": parts[0].heads, "scale": scale, "mask_filter_value": LEAST},
            domain="com.microsoft",
            name=f"{label(node)}/MultiHeadAttention",
            metadata_props=dict(node.metadata_props),
        )
        joined = _joined(node)
        out = fused.outputs[0]
        out.name, out.type, out.shape = fused.name, joined.type, joined.shape
        main.insert_before(node, fused)
        joined.replace_all_uses_with(out)
    RemoveUnusedNodesPass()(model)


class _Shared:
    """What the attentions of a graph read together, made where the first of them stands."""

    def __init__(self, main: ir.Graph) -> None:
        self._main = main
        self._padding: dict[str, ir.Value] = {}
        self._hidden: dict[int, ir.Value] = {}

    def padding(self, node: ir.Node) -> ir.Value:
        """The mask as the kernel takes it: int32 [batch, tokens], 0 for padding."""
        mask = node.inputs[MASK]
        assert mask is not None
        source = mask
        while (producer := source.producer()) is not None and producer.op_type in ("Cast", "Identity"):
            assert producer.inputs[0] is not None
            source = producer.inputs[0]
        name = source.name or ""
        if name not in self._padding:
            cast = _new("Cast", [source], f"{name}/int32", to=ir.DataType.INT32)
            _describe(cast, ir.DataType.INT32, source.shape)
            self._main.insert_before(node, cast)
            self._padding[name] = cast.outputs[0]
        return self._padding[name]

    def hidden(self, node: ir.Node, reach: int) -> ir.Value:
        """What is added to the scores of positions by their distance: float32 [1, 1, tokens, tokens]."""
        if reach in self._hidden:
            return self._hidden[reach]
        mask = node.inputs[MASK]
        assert mask is not None
        stem = f"beyond_{reach}"
        nodes: list[ir.Node] = []

        def add(kind: str, inputs: list[ir.Value | None], name: str, **attributes: object) -> ir.Value:
            nodes.append(_new(kind, inputs, f"{stem}/{name}", **attributes))
            return nodes[-1].outputs[0]

        zero, one = (add("Constant", [], str(number), value_int=number) for number in (0, 1))
        first, second = (add("Constant", [], f"axis_{axis}", value_ints=[axis]) for axis in (0, 1))
        limit = add("Constant", [], "reach", value_int=reach)
        least, nothing = (add("Constant", [], name, value_float=of) for name, of in (("least", LEAST), ("none", 0.0)))
        whole = add("Constant", [], "axes", value_ints=[0, 1])
        size = add("Shape", [mask], "size", start=1, end=2)
        tokens = add("Squeeze", [size, first], "tokens")
        position = add("Range", [zero, tokens, one], "position")
        looks, seen = (add("Unsqueeze", [position, axis], f"by_{at}") for at, axis in enumerate((second, first)))
        away = add("Abs", [add("Sub", [looks, seen], "signed")], "away")
        table = add("Where", [add("Greater", [away, limit], "far"), least, nothing], "table")
        result = add("Unsqueeze", [table, whole], "hidden")
        length = sizes(mask)[1]
        _describe(nodes[-1], ir.DataType.FLOAT, ir.Shape([1, 1, length, length]))
        self._main.insert_before(node, nodes)
        self._hidden[reach] = result
        return result


def _new(kind: str, inputs: list[ir.Value | None], name: str, **attributes: object) -> ir.Node:
    node = ir.node(kind, inputs, attributes, name=name)  # type: ignore[arg-type]
    node.outputs[0].name = name
    return node


def _describe(node: ir.Node, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), shape


def _turned(main: ir.Graph, node: ir.Node, at: int, part: HeadsPart) -> ir.Value:
    """Query, key or value with heads side by side, [batch, tokens, heads · width], after its rotary embedding."""
    whole = flat(main, node, part)
    if part.rope is None:
        return whole
    heads = node.inputs[at]
    rotation = heads.producer() if heads is not None else None
    assert rotation is not None, "a part with a rotary embedding comes from one"
    attributes = dict(rotation.attributes) | {"num_heads": ir.AttrInt64("num_heads", part.heads)}
    turned = ir.node(
        "RotaryEmbedding",
        [whole, *rotation.inputs[1:]],
        attributes,
        name=f"{node.name}/RotaryEmbedding_{at}",
        metadata_props=dict(node.metadata_props),
    )
    turned.outputs[0].name = turned.name
    turned.outputs[0].type, turned.outputs[0].shape = whole.type, whole.shape
    main.insert_before(node, turned)
    return turned.outputs[0]


def _joined(attention: ir.Node) -> ir.Value:
    """The attention's result with heads joined: [batch, tokens, heads · width].

    Raises:
        PassError: it is not joined by one Reshape.
    """
    users = [use.node for use in attention.outputs[0].uses()]
    if len(users) != 1 or users[0].op_type != "Reshape":
        raise PassError(f"{label(attention)}: its heads must be joined by one Reshape; found {users or 'nothing'}")
    return users[0].outputs[0]

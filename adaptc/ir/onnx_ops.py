"""adaptc's own operators at ONNX level, each defined by ONNX's operators.

A node says what is meant, passes carry it as it is, and each target writes it in the way it runs best. Until then a
graph runs with the definitions here, as functions of its model.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import onnx
import onnx_ir as ir

DOMAIN = "adaptc"
VERSION = 1

SKIP = "Skip"
"""Takes `full` where logit ≥ threshold, elsewhere `cheap`: see `adaptc.ir.operators.skip`."""

CAUSAL_ATTENTION = "CausalAttention"
"""Attention from each position to itself and those before it, over all tokens at once: see `operators/attention.py`."""

IMAGE_ATTENTION = "ImageAttention"
"""The same, and from the places of an image to those behind them of the same image: see `operators/attention.py`."""

CHUNKED_ATTENTION = "ChunkedAttention"
"""The same within chunks that do not see each other: see `operators/attention.py`."""

ENCODER_ATTENTION = "EncoderAttention"
"""Attention of each position to all that are no padding: see `adaptc.ir.operators.encoder_attention`."""

FULL_ATTENTION = "FullAttention"
"""The same where there is no padding: attention of each position to all."""

EXPERTS = "Experts"
"""What a token's experts make of it, weighted and added up: see `adaptc.ir.operators.experts`."""

_SKIP = """
<domain: "adaptc", opset_import: ["": 23]>
Skip (logit, threshold, full, cheap) => (chosen)
{
    runs = GreaterOrEqual (logit, threshold)
    last = Constant <value_ints = [-1]> ()
    runs_whole = Unsqueeze (runs, last)
    chosen = Where (runs_whole, full, cheap)
}
"""

_CAUSAL_ATTENTION = """
<domain: "adaptc", opset_import: ["": 23]>
CausalAttention <scale: float = 1.0, window: int = 0, softcap: float = 0.0> (query, key, value) => (result)
{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    first = Constant <value_ints = [0]> ()
    second = Constant <value_ints = [1]> ()
    size = Shape <start = 2, end = 3> (query)
    tokens = Squeeze (size)
    position = Range (zero, tokens, one)
    looks = Unsqueeze (position, second)
    seen = Unsqueeze (position, first)
    ago = Sub (looks, seen)
    width = Constant <value_int: int = @window> ()
    inside = Less (ago, width)
    unlimited = Less (width, one)
    mask = Or (inside, unlimited)
    heads = Attention <is_causal = 1, scale: float = @scale, softcap: float = @softcap> (query, key, value, mask)
    result = Transpose <perm = [0, 2, 1, 3]> (heads)
}
"""

_IMAGE_ATTENTION = """
<domain: "adaptc", opset_import: ["": 23]>
ImageAttention <scale: float = 1.0, window: int = 0, softcap: float = 0.0> (query, key, value, places) => (result)
{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    first = Constant <value_ints = [0]> ()
    second = Constant <value_ints = [1]> ()
    last = Constant <value_ints = [-1]> ()
    rows = Shape <start = 0, end = 1> (query)
    size = Shape <start = 2, end = 3> (query)
    tokens = Squeeze (size)
    position = Range (zero, tokens, one)
    looks = Unsqueeze (position, second)
    seen = Unsqueeze (position, first)
    ago = Sub (looks, seen)
    width = Constant <value_int: int = @window> ()
    inside = Less (ago, width)
    unlimited = Less (width, one)
    near = Or (inside, unlimited)
    before = GreaterOrEqual (ago, zero)
    table = Concat <axis = 0> (rows, size)
    outside = Expand (one, table)
    line = Reshape (outside, last)
    where = Unsqueeze (places, second)
    marks = Mul (places, zero)
    marked = ScatterND (line, where, marks)
    words = Reshape (marked, table)
    run = CumSum (words, one)
    here = Less (words, one)
    run_looks = Unsqueeze (run, last)
    run_seen = Unsqueeze (run, second)
    one_run = Equal (run_looks, run_seen)
    here_looks = Unsqueeze (here, last)
    here_seen = Unsqueeze (here, second)
    both = And (here_looks, here_seen)
    one_image = And (both, one_run)
    open = Or (before, one_image)
    allowed = And (open, near)
    mask = Unsqueeze (allowed, second)
    heads = Attention <scale: float = @scale, softcap: float = @softcap> (query, key, value, mask)
    result = Transpose <perm = [0, 2, 1, 3]> (heads)
}
"""

_CHUNKED_ATTENTION = """
<domain: "adaptc", opset_import: ["": 23]>
ChunkedAttention <scale: float = 1.0, chunk: int = 1> (query, key, value) => (result)
{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    first = Constant <value_ints = [0]> ()
    second = Constant <value_ints = [1]> ()
    size = Shape <start = 2, end = 3> (query)
    tokens = Squeeze (size)
    position = Range (zero, tokens, one)
    width = Constant <value_int: int = @chunk> ()
    number = Div (position, width)
    looks = Unsqueeze (number, second)
    seen = Unsqueeze (number, first)
    mask = Equal (looks, seen)
    heads = Attention <is_causal = 1, scale: float = @scale> (query, key, value, mask)
    result = Transpose <perm = [0, 2, 1, 3]> (heads)
}
"""

_ENCODER_ATTENTION = """
<domain: "adaptc", opset_import: ["": 23]>
EncoderAttention <scale: float = 1.0, reach: int = 0> (query, key, value, mask) => (result)
{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    first = Constant <value_ints = [0]> ()
    second = Constant <value_ints = [1]> ()
    inner = Constant <value_ints = [1, 2]> ()
    size = Shape <start = 2, end = 3> (query)
    tokens = Squeeze (size)
    position = Range (zero, tokens, one)
    looks = Unsqueeze (position, second)
    seen = Unsqueeze (position, first)
    signed = Sub (looks, seen)
    away = Abs (signed)
    width = Constant <value_int: int = @reach> ()
    near = LessOrEqual (away, width)
    unlimited = Less (width, one)
    inside = Or (near, unlimited)
    text = Unsqueeze (mask, inner)
    both = And (text, inside)
    nothing = Constant <value_float = 0.0> ()
    least = Constant <value_float = -3.4028234663852886e+38> ()
    bias = Where (both, nothing, least)
    typed = CastLike (bias, query)
    heads = Attention <scale: float = @scale> (query, key, value, typed)
    result = Transpose <perm = [0, 2, 1, 3]> (heads)
}
"""

_FULL_ATTENTION = """
<domain: "adaptc", opset_import: ["": 23]>
FullAttention <scale: float = 1.0> (query, key, value) => (result)
{
    heads = Attention <scale: float = @scale> (query, key, value)
    result = Transpose <perm = [0, 2, 1, 3]> (heads)
}
"""

_EXPERTS = """
<domain: "adaptc", opset_import: ["": 23]>
Experts (states, chosen, weights, gate_up, down) => (result)
{
    first = Constant <value_ints = [0]> ()
    last = Constant <value_ints = [-1]> ()
    width = Shape <start = 2, end = 3> (gate_up)
    row = Concat <axis = 0> (last, width)
    flat = Reshape (states, row)
    count = Shape <start = 0, end = 1> (flat)
    k = Shape <start = -1> (chosen)
    pair = Concat <axis = 0> (last, k)
    ids = Reshape (chosen, pair)
    shares = Reshape (weights, pair)
    experts = Shape <start = 0, end = 1> (gate_up)
    table = Concat <axis = 0> (count, experts)
    none = ConstantOfShape (table)
    empty = CastLike (none, shares)
    by_expert = ScatterElements <axis = 1> (empty, ids, shares)
    turned = Transpose <perm = [1, 0]> (by_expert)
    share = Unsqueeze (turned, last)
    x = Unsqueeze (flat, first)
    in_matrix = Transpose <perm = [0, 2, 1]> (gate_up)
    both = MatMul (x, in_matrix)
    gate, up = Split <axis = -1, num_outputs = 2> (both)
    opened = Sigmoid (gate)
    active = Mul (gate, opened)
    inner = Mul (active, up)
    out_matrix = Transpose <perm = [0, 2, 1]> (down)
    outcome = MatMul (inner, out_matrix)
    part = Mul (outcome, share)
    sum = ReduceSum <keepdims = 0> (part, first)
    like = Shape (states)
    result = Reshape (sum, like)
}
"""

DEFINITIONS: Mapping[str, onnx.FunctionProto] = MappingProxyType(
    {
        name: onnx.parser.parse_function(text)
        for name, text in (
            (SKIP, _SKIP),
            (CAUSAL_ATTENTION, _CAUSAL_ATTENTION),
            (IMAGE_ATTENTION, _IMAGE_ATTENTION),
            (CHUNKED_ATTENTION, _CHUNKED_ATTENTION),
            (ENCODER_ATTENTION, _ENCODER_ATTENTION),
            (FULL_ATTENTION, _FULL_ATTENTION),
            (EXPERTS, _EXPERTS),
        )
    }
)
"""By operator."""


_INDICES: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        (EXPERTS, "chosen"): "tensor(int64)",
        (IMAGE_ATTENTION, "places"): "tensor(int64)",
        (ENCODER_ATTENTION, "mask"): "tensor(bool)",
    }
)
"""Inputs that are no floats, by operator and name, and their types."""


def is_skip(node: ir.Node) -> bool:
    """Whether a node chooses between a block's result and what stands in for it."""
    return node.domain == DOMAIN and node.op_type == SKIP


def is_causal_attention(node: ir.Node) -> bool:
    """Whether a node is a decoder's attention over whole sequences: plain, with images or in chunks."""
    return node.domain == DOMAIN and node.op_type in (CAUSAL_ATTENTION, IMAGE_ATTENTION, CHUNKED_ATTENTION)


def places_of(node: ir.Node) -> ir.Value | None:
    """The places of images of an attention over whole sequences; None if it has none."""
    return node.inputs[3] if node.op_type == IMAGE_ATTENTION else None


def is_encoder_attention(node: ir.Node) -> bool:
    """Whether a node is an encoder's attention, with or without padding."""
    return node.domain == DOMAIN and node.op_type in (ENCODER_ATTENTION, FULL_ATTENTION)


def is_experts(node: ir.Node) -> bool:
    """Whether a node is a mixture of experts, behind its router."""
    return node.domain == DOMAIN and node.op_type == EXPERTS


def define(model: ir.Model) -> None:
    """Add the definitions of adaptc's operators that a model uses, so that any ONNX engine runs it."""
    for name in {node.op_type for node in model.graph.all_nodes() if node.domain == DOMAIN}:
        function = ir.serde.deserialize_function(DEFINITIONS[name])
        # A function must be of its model's opset; ours use nothing that changed since the oldest one we write.
        function.opset_imports[""] = model.opset_imports[""]
        model.functions[function.identifier()] = function


def schema(name: str) -> onnx.defs.OpSchema:
    """An operator's signature, as torch's exporter asks for it."""
    definition = DEFINITIONS[name]
    parameter = onnx.defs.OpSchema.FormalParameter
    return onnx.defs.OpSchema(
        name,
        DOMAIN,
        VERSION,
        inputs=[parameter(each, _INDICES.get((name, each), "T")) for each in definition.input],
        outputs=[parameter(each, "T") for each in definition.output],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
        attributes=[onnx.defs.OpSchema.Attribute(each.name, each) for each in definition.attribute_proto],
    )

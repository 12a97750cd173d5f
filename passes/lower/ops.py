"""How adaptc's own operators are written at ONNX level, for torch's exporter.

Attention, experts and the skip gate stay what they are (`adaptc.ir.onnx_ops`): later passes rewrite them for a target.
The placing of an image's features needs no pass of its own, and is written in ONNX's operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnxscript import opset23
from onnxscript.values import Op, Opset

from adaptc.ir.onnx_ops import (
    CAUSAL_ATTENTION,
    CHUNKED_ATTENTION,
    DOMAIN,
    ENCODER_ATTENTION,
    EXPERTS,
    FULL_ATTENTION,
    IMAGE_ATTENTION,
    SKIP,
    VERSION,
    schema,
)
from adaptc.ir.operators import (
    attention,  # noqa: F401  (declares adaptc::causal_attention)
    encoder_attention,  # noqa: F401  (declares adaptc::encoder_attention)
    experts,  # noqa: F401  (declares adaptc::experts)
    skip,  # noqa: F401  (declares adaptc::skip)
)
from adaptc.ir.operators import place as placing  # noqa: F401  (declares adaptc::place)

OPSET = 23
"""First opset with RMSNormalization, RotaryEmbedding and Attention, which later passes and definitions use."""

_OWN = Opset(DOMAIN, VERSION)
_CAUSAL_ATTENTION, _IMAGE_ATTENTION, _CHUNKED_ATTENTION, _SKIP, _EXPERTS = (
    Op(_OWN, name, schema(name)) for name in (CAUSAL_ATTENTION, IMAGE_ATTENTION, CHUNKED_ATTENTION, SKIP, EXPERTS)
)

_ENCODER_ATTENTION, _FULL_ATTENTION = (Op(_OWN, name, schema(name)) for name in (ENCODER_ATTENTION, FULL_ATTENTION))


def _attention(query: Any, key: Any, value: Any, scale: float, window: int, softcap: float) -> Any:
    return _CAUSAL_ATTENTION(query, key, value, scale=scale, window=window, softcap=softcap)


def _with_images(query: Any, key: Any, value: Any, places: Any, scale: float, window: int, softcap: float) -> Any:
    return _IMAGE_ATTENTION(query, key, value, places, scale=scale, window=window, softcap=softcap)


def _in_chunks(query: Any, key: Any, value: Any, scale: float, chunk: int) -> Any:
    return _CHUNKED_ATTENTION(query, key, value, scale=scale, chunk=chunk)


def _encoder_attention(query: Any, key: Any, value: Any, mask: Any, scale: float, reach: int) -> Any:
    if mask is None and not reach:
        return _FULL_ATTENTION(query, key, value, scale=scale)
    return _ENCODER_ATTENTION(query, key, value, mask, scale=scale, reach=reach)


def _skip(logit: Any, threshold: Any, full: Any, cheap: Any) -> Any:
    return _SKIP(logit, threshold, full, cheap)


def _experts(states: Any, chosen: Any, weights: Any, gate_up: Any, down: Any) -> Any:
    return _EXPERTS(states, chosen, weights, gate_up, down)


def _place(states: Any, places: Any, values: Any) -> Any:
    rows = opset23.Constant(value_ints=[-1, states.shape[2]])
    placed = opset23.ScatterND(
        opset23.Reshape(states, rows), opset23.Unsqueeze(places, [1]), opset23.Reshape(values, rows)
    )
    return opset23.Reshape(placed, opset23.Shape(states))


TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.adaptc.causal_attention.default: _attention,
    torch.ops.adaptc.chunked_attention.default: _in_chunks,
    torch.ops.adaptc.encoder_attention.default: _encoder_attention,
    torch.ops.adaptc.experts.default: _experts,
    torch.ops.adaptc.image_attention.default: _with_images,
    torch.ops.adaptc.place.default: _place,
    torch.ops.adaptc.skip.default: _skip,
}
"""What writes each of adaptc's operators, by its FX target."""

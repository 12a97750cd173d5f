"""How adaptc's own operators are written at ONNX level."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnxscript import opset23

from adaptc.ir import (
    attention,  # noqa: F401  (declares adaptc::causal_attention)
    skip,  # noqa: F401  (declares adaptc::skip)
)
from adaptc.ir import place as placing  # noqa: F401  (declares adaptc::place)

OPSET = 23
"""First opset with RMSNormalization, RotaryEmbedding and Attention, which later passes look for."""

WINDOW = "adaptc.window"
"""Where an Attention node notes its sliding window, which ONNX has no attribute for."""


def _attention(query: Any, key: Any, value: Any, scale: float, window: int, softcap: float) -> Any:
    """adaptc::causal_attention in ONNX's own operators; a window becomes a mask, and a note for `kv_cache`."""
    mask = None
    if window:
        tokens = opset23.Shape(query, start=2, end=3)
        position = opset23.Range(0, opset23.Squeeze(tokens), 1)
        ago = opset23.Sub(opset23.Unsqueeze(position, [1]), opset23.Unsqueeze(position, [0]))
        mask = opset23.Less(ago, opset23.Constant(value_int=window))
    out, *_ = opset23.Attention(query, key, value, mask, is_causal=1, scale=scale, softcap=softcap)
    out.producer().metadata_props[WINDOW] = str(window)
    return opset23.Transpose(out, perm=[0, 2, 1, 3])


def _skip(logit: Any, threshold: Any, full: Any, cheap: Any) -> Any:
    """adaptc::skip in ONNX's own operators: both are computed and one is taken, until `branch` makes it an If."""
    runs = opset23.GreaterOrEqual(logit, threshold)
    return opset23.Where(opset23.Unsqueeze(runs, [-1]), full, cheap)


def _place(states: Any, places: Any, values: Any) -> Any:
    """adaptc::place in ONNX's own operators."""
    rows = opset23.Constant(value_ints=[-1, states.shape[2]])
    placed = opset23.ScatterND(
        opset23.Reshape(states, rows), opset23.Unsqueeze(places, [1]), opset23.Reshape(values, rows)
    )
    return opset23.Reshape(placed, opset23.Shape(states))


TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.adaptc.causal_attention.default: _attention,
    torch.ops.adaptc.place.default: _place,
    torch.ops.adaptc.skip.default: _skip,
}
"""For torch's exporter: what writes each of adaptc's operators."""

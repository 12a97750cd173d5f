"""Cohere's Command R7B and A: Command R with sliding layers, and no RoPE on the full ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout, attention_bias
from adaptc.families.gguf import PARALLEL, sliding_layers

_PERIOD = 4
"""One layer of so many attends to the whole text, where the file does not say which."""


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    slides = sliding_layers(file, "cohere2", values["num_hidden_layers"], _PERIOD)
    return {
        **attention_bias(file, values),
        "logit_scale": file.need("cohere2.logit_scale", float) or 1.0,
        "sliding_window": file.need("cohere2.attention.sliding_window", int),
        "layer_types": ["sliding_attention" if sliding else "full_attention" for sliding in slides],
    }


COHERE2 = DecoderFamily(
    "cohere2",
    GgufLayout(
        "cohere2",
        PARALLEL,
        _config,
        keys=frozenset({"logit_scale", "attention.sliding_window", "attention.sliding_window_pattern"}),
        epsilon="layer_norm_eps",
    ),
    keys=frozenset({"layer_norm_eps", "logit_scale"}),
)

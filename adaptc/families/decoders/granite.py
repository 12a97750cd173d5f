"""Granite 3: Llama with a factor on embeddings, scores, blocks' results and logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout, attention_bias
from adaptc.families.gguf import GRANITE_SCALES, TWO_NORMS, granite_multipliers, rotary_weight


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **attention_bias(file, values),
        "mlp_bias": any(name.endswith(".bias") and ".ffn_" in name for name in file.tensors),
        **granite_multipliers(file, "granite", values["head_dim"]),
        "logits_scaling": file.need("granite.logit_scale", float) or 1.0,
    }


GRANITE = DecoderFamily(
    "granite",
    GgufLayout(
        "granite",
        TWO_NORMS,
        _config,
        rotary_weight,
        keys=frozenset({*GRANITE_SCALES, "logit_scale"}),
        rope_factors=True,
    ),
    keys=frozenset({"embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"}),
)

"""Granite 3: Llama with a factor on embeddings, scores, blocks' results and logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout, attention_bias
from adaptc.families.gguf import TWO_NORMS, rotary_weight

_SCALES = ("embedding_scale", "residual_scale", "attention.scale")


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    embedding, residual, attention = (file.get(f"granite.{key}", float, 0.0) for key in _SCALES)
    return {
        **attention_bias(file, values),
        "mlp_bias": any(name.endswith(".bias") and ".ffn_" in name for name in file.tensors),
        # 0 stands for no scaling, and attention for its usual one, as in llama.cpp.
        "embedding_multiplier": embedding or 1.0,
        "residual_multiplier": residual or 1.0,
        "attention_multiplier": attention or values["head_dim"] ** -0.5,
        "logits_scaling": file.need("granite.logit_scale", float) or 1.0,
    }


GRANITE = DecoderFamily(
    "granite",
    GgufLayout(
        "granite", TWO_NORMS, _config, rotary_weight, keys=frozenset({*_SCALES, "logit_scale"}), rope_factors=True
    ),
    keys=frozenset({"embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"}),
)

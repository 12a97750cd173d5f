"""Granite 3 with experts: embeddings, attention, sums and logits are scaled by numbers of the config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout, attention_bias
from adaptc.families.gguf import EXPERT_KEYS, ROUTED, expert_names, rotary_weight, routing

_BLOCK = "block_sparse_moe"
_SCALES = ("embedding_scale", "residual_scale", "attention.scale", "logit_scale")


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    experts, used = routing(file, "granitemoe")
    embedding, residual, attention, logits = (file.get(f"granitemoe.{key}", float, 0.0) for key in _SCALES)
    return {
        **attention_bias(file, values),
        "num_local_experts": experts,
        "num_experts_per_tok": used,
        # 0 stands for no scaling, and attention for its usual one, as in llama.cpp.
        "embedding_multiplier": embedding or 1.0,
        "residual_multiplier": residual or 1.0,
        "attention_multiplier": attention or values["head_dim"] ** -0.5,
        "logits_scaling": logits or 1.0,
    }


GRANITEMOE = DecoderFamily(
    "granitemoe",
    GgufLayout(
        "granitemoe",
        {**ROUTED, "ffn_gate_inp": f"{_BLOCK}.router"},
        _config,
        rotary_weight,
        keys=EXPERT_KEYS | {*_SCALES},
        experts=expert_names(_BLOCK),
    ),
)

"""Granite 3 with experts: embeddings, attention, sums and logits are scaled by numbers of the config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout, attention_bias
from adaptc.families.gguf import (
    EXPERT_KEYS,
    GRANITE_SCALES,
    ROUTED,
    expert_names,
    granite_multipliers,
    rotary_weight,
    routing,
)

_BLOCK = "block_sparse_moe"


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    experts, used = routing(file, "granitemoe")
    return {
        **attention_bias(file, values),
        "num_local_experts": experts,
        "num_experts_per_tok": used,
        **granite_multipliers(file, "granitemoe", values["head_dim"]),
        "logits_scaling": file.get("granitemoe.logit_scale", float, 0.0) or 1.0,
    }


GRANITEMOE = DecoderFamily(
    "granitemoe",
    GgufLayout(
        "granitemoe",
        {**ROUTED, "ffn_gate_inp": f"{_BLOCK}.router"},
        _config,
        rotary_weight,
        keys=EXPERT_KEYS | {*GRANITE_SCALES, "logit_scale"},
        experts=expert_names(_BLOCK),
    ),
)

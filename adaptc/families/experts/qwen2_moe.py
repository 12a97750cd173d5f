"""Qwen2 with experts: beside those that a router chooses, one for all tokens, behind a gate of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout
from adaptc.families.gguf import EXPERT_KEYS, ROUTED, expert_names, one_expert_width, routing


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    experts, used = routing(file, "qwen2moe")
    whole = values["intermediate_size"]
    return {
        "qkv_bias": any(name.endswith(".attn_q.bias") for name in file.tensors),
        "num_experts": experts,
        "num_experts_per_tok": used,
        "moe_intermediate_size": one_expert_width(file, "qwen2moe", whole, used),
        "shared_expert_intermediate_size": file.get("qwen2moe.expert_shared_feed_forward_length", int, 0) or whole,
        "norm_topk_prob": False,  # so llama.cpp computes it; files do not say
    }


_SHARED = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}

QWEN2_MOE = DecoderFamily(
    "qwen2_moe",
    GgufLayout(
        "qwen2moe",
        {**ROUTED, **_SHARED},
        _config,
        keys=EXPERT_KEYS | {"expert_feed_forward_length", "expert_shared_feed_forward_length"},
        experts=expert_names(),
    ),
)

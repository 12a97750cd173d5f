"""Qwen3 with experts: layers have a router over small blocks in the place of one block, or some of them do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout, attention_bias
from adaptc.families.gguf import EXPERT_KEYS, ROUTED, expert_names, one_expert_width, routing


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    experts, used = routing(file, "qwen3moe")
    return {
        **attention_bias(file, values),
        "num_experts": experts,
        "num_experts_per_tok": used,
        "moe_intermediate_size": one_expert_width(file, "qwen3moe", values["intermediate_size"], used),
        "norm_topk_prob": True,  # so llama.cpp computes it; files do not say
    }


QWEN3_MOE = DecoderFamily(
    "qwen3_moe",
    GgufLayout("qwen3moe", ROUTED, _config, keys=EXPERT_KEYS | {"expert_feed_forward_length"}, experts=expert_names()),
)

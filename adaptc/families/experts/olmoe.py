"""OLMoE: norms over all heads of queries and keys, and experts in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout, attention_bias
from adaptc.families.gguf import EXPERT_KEYS, ROUTED, expert_names, routing


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    experts, used = routing(file, "olmoe")
    return {
        **attention_bias(file, values),
        "num_experts": experts,
        "num_experts_per_tok": used,
        "norm_topk_prob": False,  # so llama.cpp computes it; files do not say
    }


OLMOE = DecoderFamily("olmoe", GgufLayout("olmoe", ROUTED, _config, keys=EXPERT_KEYS, experts=expert_names()))

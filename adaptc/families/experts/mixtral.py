"""Mixtral: Mistral with experts. Its GGUF files state Llama's architecture, and a number of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout
from adaptc.families.gguf import EXPERT_KEYS, ROUTED, expert_names, rotary_weight, routing


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    experts, used = routing(file, "llama")
    return {"num_local_experts": experts, "num_experts_per_tok": used}


MIXTRAL = DecoderFamily(
    "mixtral",
    GgufLayout("llama", ROUTED, _config, rotary_weight, keys=EXPERT_KEYS, experts=expert_names()),
)

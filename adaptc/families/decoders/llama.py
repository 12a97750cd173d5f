"""Llama: also SmolLM2, TinyLlama, and GGUF files of Mistral, which state this architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout, attention_bias
from adaptc.families.gguf import TWO_NORMS, rotary_weight


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **attention_bias(file, values),
        "mlp_bias": any(name.endswith(".bias") and ".ffn_" in name for name in file.tensors),
    }


LLAMA = DecoderFamily("llama", GgufLayout("llama", TWO_NORMS, _config, rotary_weight, rope_factors=True))

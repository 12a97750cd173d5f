"""SmolLM3: Llama with layers that have no RoPE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout, attention_bias
from adaptc.families.gguf import TWO_NORMS, rotary_weight

_PERIOD_OF_LAYERS_WITHOUT_ROPE = 4
"""Files do not state it; llama.cpp has this number too (src/models/smollm3.cpp)."""


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **attention_bias(file, values),
        "mlp_bias": any(name.endswith(".bias") and ".ffn_" in name for name in file.tensors),
        "no_rope_layer_interval": _PERIOD_OF_LAYERS_WITHOUT_ROPE,
    }


SMOLLM3 = DecoderFamily(
    "smollm3",
    GgufLayout("smollm3", TWO_NORMS, _config, rotary_weight),
    keys=frozenset({"no_rope_layers", "no_rope_layer_interval"}),
)

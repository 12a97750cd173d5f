"""Phi-3 and Phi-4: joined projections, RoPE on a part of each head, LongRoPE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout

_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    rope, trained = values["rope_parameters"], values["max_position_embeddings"]
    # llama.cpp has no window for Phi, whatever a file states.
    return {
        "sliding_window": None,
        "original_max_position_embeddings": rope.get("original_max_position_embeddings", trained),
    }


PHI3 = DecoderFamily(
    "phi3",
    GgufLayout("phi3", _NAMES, _config, long_rope=True, partial_rotary=True),
    keys=frozenset({"embd_pdrop", "resid_pdrop", "original_max_position_embeddings", "partial_rotary_factor"}),
    alone=True,
)

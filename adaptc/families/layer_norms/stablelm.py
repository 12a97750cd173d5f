"""StableLM 2: layer norms, RoPE on a part of each head, norms of single heads, blocks side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout
from adaptc.families.gguf import TWO_NORMS

_NAMES = {
    **TWO_NORMS,
    "attn_q_norm": "self_attn.q_layernorm.norms.*",
    "attn_k_norm": "self_attn.k_layernorm.norms.*",
}
_BIASES = (".attn_q.bias", ".attn_k.bias", ".attn_v.bias")


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "use_qkv_bias": any(name.endswith(_BIASES) for name in file.tensors),
        "qk_layernorm": "blk.0.attn_q_norm.weight" in file.tensors,
        # Whatever the key says, llama.cpp goes by whether there is a second norm.
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in file.tensors,
    }


STABLELM = DecoderFamily(
    "stablelm",
    GgufLayout(
        "stablelm",
        _NAMES,
        _config,
        keys=frozenset({"use_parallel_residual"}),
        partial_rotary=True,
        epsilon="layer_norm_eps",
    ),
    keys=frozenset(
        {
            "hidden_dropout",
            "layer_norm_eps",
            "partial_rotary_factor",
            "qk_layernorm",
            "use_parallel_residual",
            "use_qkv_bias",
        }
    ),
)

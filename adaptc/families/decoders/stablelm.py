"""StableLM 2: layer norms, RoPE on a part of each head, norms of single heads, blocks side by side."""

from __future__ import annotations

from adaptc.families.base import DecoderFamily

STABLELM = DecoderFamily(
    "stablelm",
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

"""GPT-NeoX, also Pythia: layer norms, RoPE on a part of each head, blocks side by side."""

from __future__ import annotations

from adaptc.families.base import DecoderFamily, ModuleNames

GPT_NEOX = DecoderFamily(
    "gpt_neox",
    names=ModuleNames("gpt_neox", table="embed_in", norm="final_layer_norm"),
    keys=frozenset(
        {
            "hidden_dropout",
            "layer_norm_eps",
            "partial_rotary_factor",
            "rotary_emb_base",
            "rotary_pct",
            "use_parallel_residual",
        }
    ),
)

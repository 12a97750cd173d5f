"""SmolLM3: Llama with layers that have no RoPE."""

from __future__ import annotations

from adaptc.families.base import DecoderFamily

SMOLLM3 = DecoderFamily("smollm3", keys=frozenset({"no_rope_layers", "no_rope_layer_interval"}))

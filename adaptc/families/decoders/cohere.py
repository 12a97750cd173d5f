"""Cohere's Command R: one norm for both blocks, which stand side by side; RoPE of neighbours; scaled logits."""

from __future__ import annotations

from adaptc.families.base import DecoderFamily

COHERE = DecoderFamily("cohere", keys=frozenset({"layer_norm_eps", "logit_scale", "use_qk_norm"}))

"""Granite 3: Llama with a factor on embeddings, scores, blocks' results and logits."""

from __future__ import annotations

from adaptc.families.base import DecoderFamily

GRANITE = DecoderFamily(
    "granite",
    keys=frozenset({"embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"}),
)

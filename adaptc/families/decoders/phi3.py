"""Phi-3 and Phi-4: joined projections, RoPE on a part of each head, LongRoPE."""

from __future__ import annotations

from adaptc.families.base import DecoderFamily

PHI3 = DecoderFamily(
    "phi3", keys=frozenset({"embd_pdrop", "resid_pdrop", "original_max_position_embeddings", "partial_rotary_factor"})
)

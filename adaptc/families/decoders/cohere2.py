"""Cohere's Command R7B and A: Command R with sliding layers, and no RoPE on the full ones."""

from __future__ import annotations

from adaptc.families.base import DecoderFamily

COHERE2 = DecoderFamily("cohere2", keys=frozenset({"layer_norm_eps", "logit_scale"}))

"""Gemma, whose norms scale by 1 + weight."""

from __future__ import annotations

from adaptc.families.base import DecoderFamily, GgufLayout
from adaptc.families.gguf import TWO_NORMS, norms_minus_one

GEMMA = DecoderFamily("gemma", GgufLayout("gemma", TWO_NORMS, weight=norms_minus_one))

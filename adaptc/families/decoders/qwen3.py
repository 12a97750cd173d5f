"""Qwen3, whose queries and keys pass norms of their own."""

from __future__ import annotations

from adaptc.families.base import DecoderFamily, GgufLayout
from adaptc.families.gguf import TWO_NORMS

QWEN3 = DecoderFamily("qwen3", GgufLayout("qwen3", TWO_NORMS))

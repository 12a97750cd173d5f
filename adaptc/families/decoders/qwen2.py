"""Qwen2 and Qwen2.5."""

from __future__ import annotations

from adaptc.families.base import DecoderFamily, GgufLayout
from adaptc.families.gguf import TWO_NORMS

QWEN2 = DecoderFamily("qwen2", GgufLayout("qwen2", TWO_NORMS))

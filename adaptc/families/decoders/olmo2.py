"""OLMo 2, whose norms stand behind each block, and over all heads of queries and keys."""

from __future__ import annotations

from adaptc.families.base import DecoderFamily

OLMO2 = DecoderFamily("olmo2")

"""ModernBERT (arXiv:2412.13663): RoPE, gated feed-forward blocks, and attention to neighbours in most layers."""

from __future__ import annotations

from adaptc.families.base import EncoderFamily
from adaptc.families.encoders.bert import counted

MODERNBERT = EncoderFamily("modernbert", layers="layers", positions=counted)

"""Qwen3 with experts: some or all layers have a router over small blocks in the place of one block."""

from __future__ import annotations

from adaptc.families.base import DecoderFamily

QWEN3_MOE = DecoderFamily("qwen3_moe")

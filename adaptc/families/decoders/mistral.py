"""Mistral; its GGUF files state `llama`, as the arithmetic is the same."""

from __future__ import annotations

from adaptc.families.base import DecoderFamily

MISTRAL = DecoderFamily("mistral")

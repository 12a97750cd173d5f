"""Whisper's encoder (arXiv:2212.04356): states of half a minute of sound. Its decoder is not captured."""

from __future__ import annotations

from typing import Any

from adaptc.families.base import EncoderFamily


def positions_of_sound(config: Any) -> int:
    """How many positions the states of a sound have: half as many as its frames."""
    return int(config.max_source_positions)


WHISPER = EncoderFamily(
    "whisper",
    layers="layers",
    reads="sound",
    limit=positions_of_sound,
    part="model.encoder",
    depth="encoder_layers",
)

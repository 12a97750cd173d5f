"""Gemma 3, its text models: four norms a layer, five sliding layers to a full one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout
from adaptc.families.gguf import FOUR_NORMS, norms_minus_one, sliding_window

_LAYERS_OF_27B = 62
# The sliding layers have a RoPE of their own, which the file does not carry.
_SLIDING_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **sliding_window(file, "gemma3", values, _LAYERS_OF_27B),
        "rope_parameters": {"full_attention": values["rope_parameters"], "sliding_attention": dict(_SLIDING_ROPE)},
    }


GEMMA3_TEXT = DecoderFamily("gemma3_text", GgufLayout("gemma3", FOUR_NORMS, _config, norms_minus_one))

"""Gemma 3, its text models: four norms a layer, five sliding layers to a full one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout
from adaptc.families.gguf import FOUR_NORMS, WINDOW_KEYS, norms_minus_one, sliding_window, softcap

_LAYERS_OF_27B = 62


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    # The sliding layers have a RoPE of their own, without scaling; few files state its base.
    base = file.get("gemma3.rope.freq_base_swa", float, 10000.0)
    sliding = {"rope_type": "default", "rope_theta": base}
    return {
        **sliding_window(file, "gemma3", values, _LAYERS_OF_27B, window=0, period=6),
        "rope_parameters": {"full_attention": values["rope_parameters"], "sliding_attention": sliding},
        "final_logit_softcapping": softcap(file, "gemma3", "final_logit_softcapping", None),
    }


GEMMA3_TEXT = DecoderFamily(
    "gemma3_text",
    GgufLayout("gemma3", FOUR_NORMS, _config, norms_minus_one, keys=WINDOW_KEYS | {"final_logit_softcapping"}),
)

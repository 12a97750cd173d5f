"""Gemma 2: four norms a layer, sliding windows on every other one, capped logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout
from adaptc.families.gguf import FOUR_NORMS, norms_minus_one, sliding_window

_LAYERS_OF_27B = 46


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **sliding_window(file, "gemma2", values, _LAYERS_OF_27B),
        "attn_logit_softcapping": file.get("gemma2.attn_logit_softcapping", float, 50.0),
        "final_logit_softcapping": file.get("gemma2.final_logit_softcapping", float, 30.0),
    }


GEMMA2 = DecoderFamily("gemma2", GgufLayout("gemma2", FOUR_NORMS, _config, norms_minus_one))

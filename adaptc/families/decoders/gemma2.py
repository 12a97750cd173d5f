"""Gemma 2: four norms a layer, sliding windows on every other one, capped logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.errors import LoadError
from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout
from adaptc.families.gguf import FOUR_NORMS, WINDOW_KEYS, norms_minus_one, sliding_window, softcap

_LAYERS_OF_27B = 46


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    base = file.get("gemma2.rope.freq_base", float, 10000.0)
    sliding_base = file.get("gemma2.rope.freq_base_swa", float, base)
    if sliding_base != base:
        raise LoadError(
            f"{file.path}: gemma2.rope.freq_base_swa is {sliding_base}; all layers share the RoPE of base {base}"
        )
    return {
        **sliding_window(file, "gemma2", values, _LAYERS_OF_27B, window=4096, period=2),
        "attn_logit_softcapping": softcap(file, "gemma2", "attn_logit_softcapping", 50.0),
        "final_logit_softcapping": softcap(file, "gemma2", "final_logit_softcapping", 30.0),
    }


GEMMA2 = DecoderFamily(
    "gemma2",
    GgufLayout(
        "gemma2",
        FOUR_NORMS,
        _config,
        norms_minus_one,
        keys=WINDOW_KEYS | {"attn_logit_softcapping", "final_logit_softcapping"},
    ),
)

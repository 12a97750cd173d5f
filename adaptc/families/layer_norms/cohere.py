"""Cohere's Command R: one norm for both blocks, which stand side by side; RoPE of neighbours; scaled logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout, attention_bias
from adaptc.families.gguf import PARALLEL


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **attention_bias(file, values),
        "logit_scale": file.need("command-r.logit_scale", float) or 1.0,
        "use_qk_norm": "blk.0.attn_q_norm.weight" in file.tensors,
    }


COHERE = DecoderFamily(
    "cohere",
    GgufLayout("command-r", PARALLEL, _config, keys=frozenset({"logit_scale"}), epsilon="layer_norm_eps"),
    keys=frozenset({"layer_norm_eps", "logit_scale", "use_qk_norm"}),
)

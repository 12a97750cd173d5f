"""Llama: also SmolLM2, TinyLlama, and GGUF files of Mistral, which state this architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout, attention_bias
from adaptc.families.gguf import TWO_NORMS, halves_from_pairs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **attention_bias(file, values),
        "mlp_bias": any(name.endswith(".bias") and ".ffn_" in name for name in file.tensors),
    }


def rotary_weight(name: str, values: Array, heads: int, kv_heads: int) -> Array:
    """Undo what llama.cpp's converter does to the rotary weights of Llama, and of families made from it."""
    if ".attn_q." in name:
        return halves_from_pairs(values, heads)
    if ".attn_k." in name:
        return halves_from_pairs(values, kv_heads)
    return values


LLAMA = DecoderFamily("llama", GgufLayout("llama", TWO_NORMS, _config, rotary_weight, rope_factors=True))

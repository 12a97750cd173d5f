"""GPT-NeoX, also Pythia: layer norms, RoPE on a part of each head, blocks side by side."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout, ModuleNames

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "use_parallel_residual": file.need("gptneox.use_parallel_residual", bool),
        "attention_bias": True,
        # The models were trained with GELU itself; llama.cpp computes it by tanh.
        "hidden_act": "gelu_pytorch_tanh",
    }


def _weight(name: str, values: Array, heads: int, kv_heads: int) -> Array:
    """Put each head's query, key and value together, which files have apart."""
    if ".attn_qkv." not in name:
        return values
    parts = values.reshape(3, heads, -1, *values.shape[1:])
    joined: Array = parts.swapaxes(0, 1).reshape(values.shape)
    return joined


GPT_NEOX = DecoderFamily(
    "gpt_neox",
    GgufLayout(
        "gptneox",
        _NAMES,
        _config,
        _weight,
        keys=frozenset({"use_parallel_residual"}),
        partial_rotary=True,
        epsilon="layer_norm_eps",
    ),
    names=ModuleNames("gpt_neox", table="embed_in", norm="final_layer_norm"),
    keys=frozenset(
        {
            "hidden_dropout",
            "layer_norm_eps",
            "partial_rotary_factor",
            "rotary_emb_base",
            "rotary_pct",
            "use_parallel_residual",
        }
    ),
    alone=True,
    kv_heads=attrgetter("num_attention_heads"),
)

"""GPT-2: positions that are learned, layer norms, joined and turned projections."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout, ModuleNames

_MATRICES = {
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    return {"n_inner": values["intermediate_size"], "activation_function": "gelu_pytorch_tanh"}


GPT2 = DecoderFamily(
    "gpt2",
    GgufLayout(
        "gpt2",
        {**_MATRICES, "attn_norm": "ln_1", "ffn_norm": "ln_2"},
        _config,
        epsilon="layer_norm_epsilon",
        turned=frozenset(_MATRICES),
    ),
    names=ModuleNames("transformer", "h", "wte", "ln_f", positions="wpe"),
    keys=frozenset(
        {
            "activation_function",
            "attn_pdrop",
            "embd_pdrop",
            "layer_norm_epsilon",
            "n_ctx",
            "n_embd",
            "n_head",
            "n_inner",
            "n_layer",
            "n_positions",
            "reorder_and_upcast_attn",  # the order of a scale and a product, in half precision
            "resid_pdrop",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        }
    ),
    accepted={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    alone=True,
    kv_heads=attrgetter("num_attention_heads"),
)

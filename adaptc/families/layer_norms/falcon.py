"""Falcon: one or a few key heads for all queries, blocks side by side; models with ALiBi are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptc.errors import LoadError
from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout, ModuleNames

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Array = npt.NDArray[np.float32]

_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}


def _two_norms(file: GgufHeader) -> bool:
    return "blk.0.attn_norm_2.weight" in file.tensors


def _renamed(file: GgufHeader) -> dict[str, str]:
    return {"attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"} if _two_norms(file) else {}


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    kv_heads = values["num_key_value_heads"]
    return {
        "num_kv_heads": kv_heads,
        "multi_query": kv_heads == 1,
        "new_decoder_architecture": kv_heads > 1 or _two_norms(file),
        "num_ln_in_parallel_attn": 2 if _two_norms(file) else 1,
        "parallel_attn": True,
        "bias": any(name.endswith(".bias") and "norm" not in name for name in file.tensors),
        "ffn_hidden_size": values["intermediate_size"],
        # The models were trained with GELU itself; llama.cpp computes it by tanh.
        "activation": "gelu_pytorch_tanh",
    }


def _weight(name: str, values: Array, heads: int, kv_heads: int) -> Array:
    """Put each group's queries, its key and its value together, which files have apart."""
    import numpy as np

    if ".attn_qkv." not in name:
        return values
    width = values.shape[0] // (heads + 2 * kv_heads)
    ends = heads * width, (heads + kv_heads) * width
    parts = [part.reshape(kv_heads, -1, *values.shape[1:]) for part in np.split(values, ends)]
    joined: Array = np.concatenate(parts, 1).reshape(values.shape)
    return joined


def _prepare(model: Any) -> None:
    """Let Falcon's own attention code, which takes no other function, call adaptc's operator."""
    import torch
    from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb

    if model.config.new_decoder_architecture and not model.config.parallel_attn:
        raise LoadError(
            "falcon: new_decoder_architecture with parallel_attn false: transformers does not run this; true is right"
        )

    class OwnAttention(torch.nn.Module):
        """FalconAttention without ALiBi, over as many key heads as there are."""

        def __init__(self, old: Any) -> None:
            super().__init__()
            self.query_key_value, self.dense = old.query_key_value, old.dense
            self.width, self.kv_heads = old.head_dim, old.num_kv_heads
            # Grouped: each group's queries, its key and its value; otherwise all queries of one key, or of each.
            self.groups = self.kv_heads if old.new_decoder_architecture or not old.multi_query else 1

        def forward(self, hidden_states: torch.Tensor, position_embeddings: Any, **others: object) -> tuple[Any, None]:
            batch, tokens, _ = hidden_states.shape
            joined = self.query_key_value(hidden_states).view(batch, tokens, self.groups, -1, self.width)
            parts = joined[:, :, :, :-2], joined[:, :, :, -2:-1], joined[:, :, :, -1:]
            query, key, value = (part.flatten(2, 3).transpose(1, 2) for part in parts)
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
            attended = torch.ops.adaptc.causal_attention(query, key, value, self.width**-0.5, 0, 0.0)
            return self.dense(attended.reshape(batch, tokens, -1)), None

    for layer in model.transformer.h:
        layer.self_attention = OwnAttention(layer.self_attention)


def _kv_heads(config: Any) -> int:
    if config.new_decoder_architecture:
        return int(config.num_kv_heads)
    return 1 if config.multi_query else int(config.num_attention_heads)


FALCON = DecoderFamily(
    "falcon",
    GgufLayout("falcon", _NAMES, _config, _weight, epsilon="layer_norm_epsilon", renamed=_renamed),
    names=ModuleNames("transformer", "h", "word_embeddings", "ln_f"),
    keys=frozenset(
        {
            "activation",
            "apply_residual_connection_post_layernorm",
            "bias",
            "ffn_hidden_size",
            "hidden_dropout",
            "layer_norm_epsilon",
            "multi_query",
            "n_head",
            "n_layer",
            "new_decoder_architecture",
            "num_kv_heads",
            "num_ln_in_parallel_attn",
            "parallel_attn",
        }
    ),
    accepted={"alibi": False},
    prepare=_prepare,
    own_attention=True,
    alone=True,
    kv_heads=_kv_heads,
)

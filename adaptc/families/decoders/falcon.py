"""Falcon: one or a few key heads for all queries, blocks side by side; models with ALiBi are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptc.families.base import DecoderFamily, ModuleNames

if TYPE_CHECKING:
    import torch


def _prepare(model: Any) -> None:
    """Let Falcon's own attention code, which takes no other function, call adaptc's operator."""
    import torch
    from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb

    class Attention(torch.nn.Module):
        """FalconAttention without ALiBi, over as many key heads as there are."""

        def __init__(self, old: Any) -> None:
            super().__init__()
            self.query_key_value, self.dense = old.query_key_value, old.dense
            self.width, self.kv_heads = old.head_dim, old.num_kv_heads
            # Grouped: each group's queries, its key and its value; otherwise all queries of one key, or of each.
            self.groups = self.kv_heads if old.new_decoder_architecture or not old.multi_query else 1

        def forward(self, hidden_states: torch.Tensor, position_embeddings: Any, **_: object) -> tuple[Any, None]:
            batch, tokens, _ = hidden_states.shape
            joined = self.query_key_value(hidden_states).view(batch, tokens, self.groups, -1, self.width)
            parts = joined[:, :, :, :-2], joined[:, :, :, -2:-1], joined[:, :, :, -1:]
            query, key, value = (part.flatten(2, 3).transpose(1, 2) for part in parts)
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
            attended = torch.ops.adaptc.causal_attention(query, key, value, self.width**-0.5, 0, 0.0)
            return self.dense(attended.reshape(batch, tokens, -1)), None

    for layer in model.transformer.h:
        layer.self_attention = Attention(layer.self_attention)


FALCON = DecoderFamily(
    "falcon",
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
)

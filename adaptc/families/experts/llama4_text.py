"""Llama 4, its text models: most layers see a chunk of the text, the others have no RoPE; one expert and a shared one.

transformers computes RoPE by complex numbers, norms heads after it, and gives every expert every token. The same is
written here in the forms that other families have: RoPE of neighbours, norms before it, which a turn leaves as long as
they are, and a router's choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptc.errors import LoadError
from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout, attention_bias
from adaptc.families.gguf import EXPERT_KEYS, ROUTED, expert_names

if TYPE_CHECKING:
    import torch

_CHUNK = 8192
"""Positions of a chunk, and those after which attention's temperature rises; files do not state them, and llama.cpp has
this number too (src/models/llama4.cpp)."""

_PERIOD = 4
"""One layer of so many sees the whole text, without RoPE; the same."""

_WITHOUT_NORMS = 128
"""The number of experts of the model whose heads have no norms, by which llama.cpp tells it."""


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    for key, neutral in (("expert_used_count", 1), ("attention.sliding_window_pattern", _PERIOD)):
        if (value := file.get(f"llama4.{key}", int, neutral)) != neutral:
            raise LoadError(f"{file.path}: llama4.{key} is {value}, which is not supported; {neutral} is")
    if file.get("llama4.attention.sliding_window", int, _CHUNK) == 0:
        raise LoadError(f"{file.path}: llama4.attention.sliding_window is 0, which is not supported; {_CHUNK} is")
    experts = file.need("llama4.expert_count", int)
    return {
        **attention_bias(file, values),
        "num_local_experts": experts,
        "num_experts_per_tok": 1,
        "intermediate_size": file.need("llama4.expert_feed_forward_length", int),
        "intermediate_size_mlp": values["intermediate_size"],
        "interleave_moe_layer_step": file.need("llama4.interleave_moe_layer_step", int),
        "use_qk_norm": experts != _WITHOUT_NORMS,
        "no_rope_layer_interval": _PERIOD,
        "attention_chunk_size": _CHUNK,
        "attn_temperature_tuning": True,
        "floor_scale": _CHUNK,
        "attn_scale": 0.1,
    }


_NAMES = {
    **ROUTED,
    "ffn_gate_inp": "feed_forward.router",
    **{f"ffn_{part}": f"feed_forward.{part}_proj" for part in ("gate", "up", "down")},
    **{f"ffn_{part}_shexp": f"feed_forward.shared_expert.{part}_proj" for part in ("gate", "up", "down")},
}


def _prepare(model: Any) -> None:
    """Put modules that compute the same in usual forms in the place of positions, attention and blocks with experts."""
    import torch
    import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
    from transformers.models.cohere.modeling_cohere import CohereRotaryEmbedding, apply_rotary_pos_emb

    config = model.config
    normed = config.use_qk_norm

    class Positions(torch.nn.Module):
        """Tables of RoPE, and what queries of layers without it are multiplied by."""

        def __init__(self) -> None:
            super().__init__()
            self.rotary = CohereRotaryEmbedding(config)

        def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
            cos, sin = self.rotary(x, position_ids)
            step = torch.floor((position_ids.float() + 1.0) / config.floor_scale)
            return cos, sin, torch.log1p(step) * config.attn_scale + 1.0

    class AttentionInChunks(torch.nn.Module):
        """Llama4TextAttention with norms before RoPE; a factor in its tables changes no norm but for epsilon."""

        def __init__(self, old: Any) -> None:
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj, self.o_proj = old.q_proj, old.k_proj, old.v_proj, old.o_proj
            self.width, self.turned, self.scale = old.head_dim, bool(old.use_rope), old.scaling
            self.tuned = bool(old.attn_temperature_tuning) and not self.turned
            chunked = config.layer_types[old.layer_idx] == "chunked_attention"
            self.chunk = config.attention_chunk_size if chunked else 0

        def forward(self, hidden_states: torch.Tensor, position_embeddings: Any, **_: object) -> tuple[Any, None]:
            batch, tokens, _width = hidden_states.shape
            cos, sin, scales = position_embeddings
            query, key, value = (
                part(hidden_states).view(batch, tokens, -1, self.width)
                for part in (self.q_proj, self.k_proj, self.v_proj)
            )
            if self.tuned:
                query = query * scales[:, :, None, None]
            if self.turned and normed:
                query, key = self.normed(query), self.normed(key)
            query, key, value = (part.transpose(1, 2) for part in (query, key, value))
            if self.turned:
                query, key = apply_rotary_pos_emb(query, key, cos, sin)
            if self.chunk:
                attended = torch.ops.adaptc.chunked_attention(query, key, value, self.scale, self.chunk)
            else:
                attended = torch.ops.adaptc.causal_attention(query, key, value, self.scale, 0, 0.0)
            return self.o_proj(attended.reshape(batch, tokens, -1)), None

        def normed(self, heads: torch.Tensor) -> torch.Tensor:
            """Heads divided by the root of their mean square."""
            factor = model.model.rotary_emb.rotary.attention_scaling
            weight = torch.full((self.width,), 1 / factor)
            return F.rms_norm(heads, (self.width,), weight, config.rms_norm_eps / factor**2)

    class OwnBlock(torch.nn.Module):
        """Llama4TextMoe that gives a token to its expert alone."""

        def __init__(self, old: Any) -> None:
            super().__init__()
            self.router, self.experts, self.shared_expert = old.router, old.experts, old.shared_expert

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = F.linear(x, self.router.weight)
            best, chosen = torch.topk(logits, 1)
            # The router's weight is the input's, not the result's, as silu is in between.
            opened = x * torch.sigmoid(best)
            matrices = self.experts.gate_up_proj, self.experts.down_proj
            routed = torch.ops.adaptc.experts(opened, chosen, torch.ones_like(best), *matrices)
            return self.shared_expert(x) + routed, logits

    model.model.rotary_emb = Positions()
    for layer in model.model.layers:
        layer.self_attn = AttentionInChunks(layer.self_attn)
        if layer.is_moe_layer:
            layer.feed_forward = OwnBlock(layer.feed_forward)


LLAMA4_TEXT = DecoderFamily(
    "llama4_text",
    GgufLayout(
        "llama4",
        _NAMES,
        _config,
        keys=EXPERT_KEYS
        | {
            "attention.sliding_window",
            "attention.sliding_window_pattern",
            "expert_feed_forward_length",
            "interleave_moe_layer_step",
        },
        rope_factors=True,
        experts=expert_names("feed_forward"),
        turned=frozenset({"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"}),
    ),
    keys=frozenset(
        {
            "attention_chunk_size",
            "attn_scale",
            "attn_temperature_tuning",
            "floor_scale",
            "interleave_moe_layer_step",
            "intermediate_size_mlp",
            "moe_layers",
            "no_rope_layer_interval",
            "no_rope_layers",
            "use_qk_norm",
        }
    ),
    accepted={"num_experts_per_tok": 1},
    prepare=_prepare,
    alone=True,
)

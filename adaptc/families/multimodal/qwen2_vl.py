"""Qwen2-VL: one image of any size, cut into patches with rows and columns, before a decoder of its own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from adaptc.families.base import MultimodalFamily

if TYPE_CHECKING:
    import torch


def _prepare(model: Any) -> None:
    """Let each block attend over all patches; transformers' own cuts them into images, by numbers."""
    for block in model.visual.blocks:
        block.attn.forward = partial(_attend, block.attn)


def _attend(attention: Any, states: torch.Tensor, position_embeddings: Any, **_: object) -> torch.Tensor:
    """As Qwen2-VL's VisionAttention over the patches of one image: float32 [patches, width]."""
    from torch.nn.functional import scaled_dot_product_attention

    heads = heads_of(attention, states, position_embeddings)
    query, key, value = (each.transpose(0, 1)[None] for each in heads)
    out = scaled_dot_product_attention(query, key, value, scale=attention.scaling)
    joined: torch.Tensor = attention.proj(out[0].transpose(0, 1).reshape(states.shape[0], -1))
    return joined


def heads_of(
    attention: Any, states: torch.Tensor, position_embeddings: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value of patches, after their rotary embedding: float32 [patches, heads, head_dim]."""
    from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

    shape = states.shape[0], 3, attention.num_heads, attention.head_dim
    query, key, value = attention.qkv(states).reshape(shape).permute(1, 0, 2, 3).unbind(0)
    return (*apply_rotary_pos_emb_vision(query, key, *position_embeddings), value)


def _encode(model: Any, pixels: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """As Qwen2VLModel.get_image_features of one image: float32 [places, width]."""
    encoder = model.visual
    states = encoder.patch_embed(pixels)
    rotations = encoder.rotary_pos_emb(states, positions)
    for block in encoder.blocks:
        states = block(states, cu_seqlens=None, position_embeddings=rotations)
    features: torch.Tensor = encoder.merger(states)
    return features


QWEN2_VL = MultimodalFamily(
    "qwen2_vl",
    "model.language_model",
    _encode,
    decoders=("qwen2_vl_text",),
    any_size=True,
    encoder_depth="depth",
    prepare=_prepare,
)

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
    from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

    patches = states.shape[0]
    parts = attention.qkv(states).reshape(patches, 3, attention.num_heads, attention.head_dim).permute(1, 0, 2, 3)
    query, key = apply_rotary_pos_emb_vision(parts[0], parts[1], *position_embeddings)
    query, key, value = (each.transpose(0, 1)[None] for each in (query, key, parts[2]))
    out = scaled_dot_product_attention(query, key, value, scale=attention.scaling)
    joined: torch.Tensor = attention.proj(out[0].transpose(0, 1).reshape(patches, -1))
    return joined


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

"""Gemma 3 with images: SigLIP, of which each square of patches is averaged, and a decoder that sees an image whole."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, Any

from adaptc.families.base import MultimodalFamily

if TYPE_CHECKING:
    import torch


def _encode(model: Any, pixels: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """As Gemma3Model.get_image_features: float32 [images, tokens, width]."""
    features: torch.Tensor = model.multi_modal_projector(model.vision_tower(pixels).last_hidden_state)
    return features


def _fault(config: Any) -> str:
    side = config.vision_config.image_size // config.vision_config.patch_size
    tokens = config.mm_tokens_per_image
    root = isqrt(tokens)
    if root * root == tokens and root and side % root == 0:
        return ""
    return (
        f"mm_tokens_per_image is {tokens}; a square number whose root divides {side}, the patches of an image's side, "
        "is right"
    )


GEMMA3 = MultimodalFamily(
    "gemma3",
    "model.language_model",
    _encode,
    encoders=("siglip_vision_model",),
    decoders=("gemma3_text",),
    mark="<start_of_image>",
    written="\n\n<start_of_image>{}<end_of_image>\n\n",
    resample=2,
    whole=True,
    fault=_fault,
)

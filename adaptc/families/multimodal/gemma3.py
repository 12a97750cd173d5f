"""Gemma 3 with images: SigLIP, of which each square of patches is averaged, and a decoder that sees an image whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptc.families.base import MultimodalFamily

if TYPE_CHECKING:
    import torch


def _encode(model: Any, pixels: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """As Gemma3Model.get_image_features: float32 [images, tokens, width]."""
    features: torch.Tensor = model.multi_modal_projector(model.vision_tower(pixels).last_hidden_state)
    return features


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
)

"""LLaVA: a CLIP or SigLIP encoder, of which one layer's states (or several layers') go through a projector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptc.families.base import MultimodalFamily

if TYPE_CHECKING:
    import torch


def _encode(model: Any, pixels: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """As LlavaModel.get_image_features: float32 [images, tokens, width]."""
    import torch

    layers = model.config.vision_feature_layer
    states = model.vision_tower(pixels, output_hidden_states=True).hidden_states
    picked = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
    if model.config.vision_feature_select_strategy == "default":
        picked = [state[:, 1:] for state in picked]
    features: torch.Tensor = model.multi_modal_projector(torch.cat(picked, -1))
    return features


LLAVA = MultimodalFamily(
    "llava", "model.language_model", _encode, encoders=("clip_vision_model", "siglip_vision_model")
)

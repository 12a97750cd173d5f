"""Idefics3: an encoder of its own, whose patches learn their positions, and a connector that joins patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptc.families.base import MultimodalFamily

if TYPE_CHECKING:
    import torch

_FAKE = "<fake_token_around_image>"


def _encode(model: Any, pixels: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """As Idefics3Model.get_image_features for images without padding: float32 [images, tokens, width]."""
    encoder = model.vision_model
    patches = encoder.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    states = encoder.encoder(inputs_embeds=patches + encoder.embeddings.position_embedding(positions))
    features: torch.Tensor = model.connector(encoder.post_layernorm(states.last_hidden_state))
    return features


def _patch_positions(model: Any) -> torch.Tensor:
    """The positions that an image without padding has, int64 [1, patches], as transformers works them out."""
    import torch

    encoder = model.vision_model
    side = encoder.config.image_size
    patches = side // encoder.config.patch_size
    seen: list[torch.Tensor] = []
    hook = encoder.embeddings.position_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        encoder.embeddings(torch.zeros(1, 3, side, side), torch.ones(1, patches, patches, dtype=torch.bool))
    hook.remove()
    return seen[0]


IDEFICS3 = MultimodalFamily(
    "idefics3",
    "model.text_model",
    _encode,
    around=((_FAKE, "<global-img>"), (_FAKE,)),
    patch_positions=_patch_positions,
)

"""Qwen2.5-VL: as Qwen2-VL, but most layers of its encoder see an image window by window."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from adaptc.families.multimodal.qwen2_vl import QWEN2_VL, heads_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class _Windows:
    """Which patches see each other in most layers. A window has n places of m patches each.

    Attributes:
        places: int64 [windows, n], the place of an image that each place of a window is; anyone where it is cut off.
        mask: bool [windows, 1, n · m, n · m], whether a patch of a window is there for the others to see.
        back: int64 [places], where each place of an image is among those of the windows.
    """

    places: torch.Tensor
    mask: torch.Tensor
    back: torch.Tensor

    @classmethod
    def of(cls, places: torch.Tensor, count: int, patches: int) -> _Windows:
        """Make them from what a graph is given.

        Args:
            places: int64 [windows, n], -1 where a window is cut off; every place of an image once.
            count: Of an image's places.
            patches: Of a place.
        """
        import torch

        there = places >= 0
        order = torch.arange(places.shape[0] * places.shape[1])
        ends = torch.where(there, places, count).flatten()
        back = torch.zeros(count + 1, dtype=torch.int64).scatter(0, ends, order)[:count]
        size = places.shape[1] * patches  # onnxruntime's kernel takes no mask of one row for all
        mask = there.repeat_interleave(patches, 1)[:, None, None].expand(-1, 1, size, size)
        return cls(places.clamp(min=0), mask, back)

    def cut(self, states: torch.Tensor) -> torch.Tensor:
        """Bring patches into windows: float [patches, ...] to [windows, n · m, ...]."""
        whole = states.reshape(self.back.shape[0], -1, *states.shape[1:])
        cut: torch.Tensor = whole[self.places].flatten(1, 2)
        return cut

    def joined(self, states: torch.Tensor) -> torch.Tensor:
        """Undo `cut`, without what was filled up."""
        count, size = self.places.shape
        whole = states.reshape(count * size, -1, *states.shape[2:])
        joined: torch.Tensor = whole[self.back].flatten(0, 1)
        return joined


def _prepare(model: Any) -> None:
    """Let each block attend over all patches of the one image, or within windows; transformers' own cuts by numbers."""
    for block in model.visual.blocks:
        block.attn.forward = partial(_attend, block.attn)


def _attend(
    attention: Any, states: torch.Tensor, position_embeddings: Any, windows: _Windows | None = None, **_: object
) -> torch.Tensor:
    """As Qwen2_5_VLVisionAttention over the patches of one image, or of its windows: float32 [patches, width]."""
    from torch.nn.functional import scaled_dot_product_attention

    parts = heads_of(attention, states, position_embeddings)
    cut = [each[None] if windows is None else windows.cut(each) for each in parts]
    query, key, value = (each.transpose(1, 2) for each in cut)
    mask = None if windows is None else windows.mask
    out = scaled_dot_product_attention(query, key, value, mask, scale=attention.scaling).transpose(1, 2)
    joined = out[0] if windows is None else windows.joined(out)
    result: torch.Tensor = attention.proj(joined.flatten(1))
    return result


def _encode(model: Any, pixels: torch.Tensor, positions: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    """As Qwen2_5_VLModel.get_image_features of one image, whose patches stay in order: float32 [places, width]."""
    encoder = model.visual
    patches = encoder.spatial_merge_unit
    cut = _Windows.of(windows, positions.shape[0] // patches, patches)
    states = encoder.patch_embed(pixels)
    rotations = encoder.rotary_pos_emb(states, positions)
    for layer, block in enumerate(encoder.blocks):
        seen = None if layer in encoder.fullatt_block_indexes else cut
        states = block(states, cu_seqlens=None, position_embeddings=rotations, windows=seen)
    features: torch.Tensor = encoder.merger(states)
    return features


def _window(encoder: Any) -> int:
    return int(encoder.window_size // encoder.spatial_merge_size // encoder.patch_size)


def _fault(config: Any) -> str:
    encoder = config.vision_config
    if _window(encoder) > 0:
        return ""
    side = encoder.patch_size * encoder.spatial_merge_size
    return f"window_size is {encoder.window_size}; at least {side}, the pixels of a place's side, is right"


QWEN2_5_VL = replace(
    QWEN2_VL,
    model_type="qwen2_5_vl",
    encode=_encode,
    decoders=("qwen2_5_vl_text",),
    window=_window,
    fault=_fault,
    prepare=_prepare,
)

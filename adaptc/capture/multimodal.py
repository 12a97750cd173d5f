"""Multimodal language model -> FX graph: its image encoder at full depth, its decoder stamped as any other.

pixels ─> encoder ─> projector ──┐
ids ─> embedding ─> place ───────┴─> layer 0 ─ … ─> norm, head ─> logits
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import fx

from adaptc.capture.text import attach, layer_kinds, shallow, stamp, tidy, tied
from adaptc.errors import LoadError
from adaptc.families.multimodal import decoder_path, model_of
from adaptc.ir import attention
from adaptc.ir.graph import FxGraph
from adaptc.ir.place import PATCHES, PIXELS, PLACES

if TYPE_CHECKING:
    from transformers import PretrainedConfig

dim = torch.export.Dim


def capture_multimodal(config: PretrainedConfig, weights: Mapping[str, torch.Tensor]) -> FxGraph:
    """Capture a multimodal language model as a pure function of its texts and images.

    Args:
        config: What transformers says of the model.
        weights: Parameters by their transformers names; they are shared, not copied.

    Returns:
        FxGraph(input_ids int64[batch, tokens], position_ids int64[batch, tokens], pixel_values float32[images, ...],
        image_places int64[places]) -> logits[batch, tokens, vocab]. Where images are of any size, there is one:
        pixel_values float32[cells, patches, numbers] with patch_positions int64[cells, patches, 2]; and position_ids
        are int64[3, batch, tokens].

    Raises:
        LoadError: it cannot be exported, a layer cannot be stamped, or a weight is missing or of another shape.
    """
    kinds = layer_kinds(config.text_config)
    module, ties = _export(config, [kinds[0], *dict.fromkeys(kinds)])
    sizes = _dims(module)
    tidy(module)
    stamp(module, kinds, decoder_path(config))
    attach(module, weights, ties)
    return FxGraph(module, sizes).fork()


def _dims(module: fx.GraphModule) -> dict[str, str]:
    """Names for the exporter's symbols, by where they are."""
    values = {str(node.target): node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"}
    batch, tokens = values["input_ids"].shape
    return {
        str(batch): "batch",
        str(tokens): "tokens",
        str(values[PIXELS].shape[0]): "cells" if PATCHES in values else "images",
        str(values[PLACES].shape[0]): "places",
    }


def _export(config: PretrainedConfig, kinds: list[str]) -> tuple[fx.GraphModule, dict[str, str]]:
    """Export the model with only these decoder layers; also say which parameters are one."""
    from transformers import initialization

    attention.register()
    small = copy.deepcopy(config)
    small.text_config = shallow(config.text_config, kinds)
    # No weight is written, so their pages never exist; computed buffers are real.
    with initialization.no_init_weights():
        model = model_of(
            small, attn_implementation={"text_config": attention.NAME, "vision_config": "sdpa"}, dtype=torch.float32
        ).eval()
    model.tie_weights()
    whole = _Spatial(model) if hasattr(config.vision_config, "spatial_merge_size") else _Whole(model)
    examples, free = whole.examples()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            module = torch.export.export(whole, examples, dynamic_shapes=free).module()
        except Exception as error:  # torch.export raises whatever the traced code does
            cause = str(error).strip().splitlines()[0][:200]
            raise LoadError(f"capture: {config.model_type}: {type(error).__name__}: {cause}") from error
    assert isinstance(module, fx.GraphModule)
    module.graph.set_codegen(fx.graph.CodeGen())
    output = module.graph.output_node()
    output.args = (tuple(output.all_input_nodes),)
    module.meta["outputs"] = ("logits",)
    return module, tied(model)


class _Whole(torch.nn.Module):
    """A model, told where its images go; parameters have the names they have in transformers' own."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.model
        self.lm_head = model.lm_head
        self.config = model.config
        if self.config.model_type in ("idefics3", "smolvlm"):
            self.register_buffer("positions", _patch_positions(self.model.vision_model))

    def examples(self) -> tuple[tuple[torch.Tensor, ...], tuple[dict[int, Any], ...]]:
        """Inputs, and which of their sizes are free. Sizes of 0 and 1 would be taken for constants."""
        ids, side = torch.zeros(2, 7, dtype=torch.int64), self.config.vision_config.image_size
        text = {0: dim("batch", min=1, max=4096), 1: dim("tokens", min=1, max=1 << 20)}
        places = {0: dim("places", min=1, max=1 << 20)}
        given = ids, ids.clone(), torch.zeros(3, 3, side, side), torch.arange(5)
        return given, (text, text, {0: dim("images", min=1, max=4096)}, places)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        image_places: torch.Tensor,
    ) -> torch.Tensor:
        features = _ENCODERS[self.config.model_type](self, pixel_values)
        return self.logits(input_ids, position_ids, features, image_places)

    def logits(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, features: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        decoder = self.model.get_submodule(decoder_path(self.config).removeprefix("model."))
        states = torch.ops.adaptc.place(decoder.embed_tokens(input_ids), places, features)
        out = decoder(inputs_embeds=states, position_ids=position_ids, use_cache=False)
        logits: torch.Tensor = self.lm_head(out.last_hidden_state)
        return logits


class _Spatial(_Whole):
    """A model that takes one image of any size, as Qwen2-VL: places have rows and columns, before and behind."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        for block in self.model.visual.blocks:
            block.attn.forward = partial(_attend, block.attn)  # transformers' own cuts patches into images, by numbers

    def examples(self) -> tuple[tuple[torch.Tensor, ...], tuple[dict[int, Any], ...]]:
        ids, encoder = torch.zeros(2, 7, dtype=torch.int64), self.config.vision_config
        patches = encoder.spatial_merge_size**2
        pixels = torch.zeros(3, patches, encoder.in_channels * encoder.temporal_patch_size * encoder.patch_size**2)
        corners = torch.zeros(3, patches, 2, dtype=torch.int64)
        batch, tokens, cells = (
            dim("batch", min=1, max=4096),
            dim("tokens", min=1, max=1 << 20),
            dim("cells", max=1 << 20),
        )
        places = {0: dim("places", min=1, max=1 << 20)}
        given = ids, ids.expand(3, 2, 7).clone(), pixels, corners, torch.arange(5)
        return given, ({0: batch, 1: tokens}, {1: batch, 2: tokens}, {0: cells}, {0: cells}, places)

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        patch_positions: torch.Tensor,
        image_places: torch.Tensor,
    ) -> torch.Tensor:
        encoder = self.model.visual
        states = encoder.patch_embed(pixel_values.flatten(0, 1))
        turned = encoder.rotary_pos_emb(states, patch_positions.flatten(0, 1))
        for block in encoder.blocks:
            states = block(states, cu_seqlens=None, position_embeddings=turned)
        return self.logits(input_ids, position_ids, encoder.merger(states), image_places)


def _attend(attention: Any, states: torch.Tensor, position_embeddings: Any, **_: object) -> torch.Tensor:
    """As Qwen2-VL's VisionAttention over the patches of one image: float32 [patches, width]."""
    from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

    patches = states.shape[0]
    parts = attention.qkv(states).reshape(patches, 3, attention.num_heads, attention.head_dim).permute(1, 0, 2, 3)
    query, key = apply_rotary_pos_emb_vision(parts[0], parts[1], *position_embeddings)
    query, key, value = (each.transpose(0, 1)[None] for each in (query, key, parts[2]))
    out = F.scaled_dot_product_attention(query, key, value, scale=attention.scaling)
    joined: torch.Tensor = attention.proj(out[0].transpose(0, 1).reshape(patches, -1))
    return joined


def _llava(whole: _Whole, pixels: torch.Tensor) -> torch.Tensor:
    """As LlavaModel.get_image_features: float32 [images, tokens, width]."""
    model, config = whole.model, whole.config
    layers = config.vision_feature_layer
    states = model.vision_tower(pixels, output_hidden_states=True).hidden_states
    picked = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
    if config.vision_feature_select_strategy == "default":
        picked = [state[:, 1:] for state in picked]
    features: torch.Tensor = model.multi_modal_projector(torch.cat(picked, -1))
    return features


def _idefics3(whole: _Whole, pixels: torch.Tensor) -> torch.Tensor:
    """As Idefics3Model.get_image_features for images without padding: float32 [images, tokens, width]."""
    encoder = whole.model.vision_model
    patches = encoder.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    states = encoder.encoder(inputs_embeds=patches + encoder.embeddings.position_embedding(whole.positions))
    features: torch.Tensor = whole.model.connector(encoder.post_layernorm(states.last_hidden_state))
    return features


def _patch_positions(encoder: Any) -> torch.Tensor:
    """The positions that an image without padding has, int64 [1, patches], as transformers works them out."""
    side = encoder.config.image_size
    patches = side // encoder.config.patch_size
    seen: list[torch.Tensor] = []
    hook = encoder.embeddings.position_embedding.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        encoder.embeddings(torch.zeros(1, 3, side, side), torch.ones(1, patches, patches, dtype=torch.bool))
    hook.remove()
    return seen[0]


_ENCODERS: Mapping[str, Callable[[_Whole, torch.Tensor], torch.Tensor]] = {
    "llava": _llava,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
}

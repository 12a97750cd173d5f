"""Multimodal language model -> FX graph: its image encoder at full depth, its decoder stamped as any other.

pixels ─> tower ─> projector ─┐
ids ─> embedding ─> place ────┴─> layer 0 ─ … ─> norm, head ─> logits
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from adaptc import attention
from adaptc.capture import attach, layer_kinds, shallow, stamp, tidy, tied
from adaptc.errors import LoadError
from adaptc.graph import FxGraph
from adaptc.multimodal import decoder_path, model_of
from adaptc.placing import PIXELS, PLACES

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ARGUMENTS = ("input_ids", "position_ids", PIXELS, PLACES)


def capture_multimodal(config: PretrainedConfig, weights: Mapping[str, torch.Tensor]) -> FxGraph:
    """Capture a multimodal language model as a pure function of its texts and images.

    Args:
        config: What transformers says of the model.
        weights: Parameters by their transformers names; they are shared, not copied.

    Returns:
        FxGraph(input_ids int64[batch, tokens], position_ids int64[batch, tokens], pixel_values float32[images, ...],
        image_places int64[places]) -> logits[batch, tokens, vocab].

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
        str(values[PIXELS].shape[0]): "images",
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
    whole = _Whole(model)
    # Sizes of 0 and 1 would be taken for constants.
    ids = torch.zeros(2, 7, dtype=torch.int64)
    side = config.vision_config.image_size
    examples = (ids, ids.clone(), torch.zeros(3, 3, side, side), torch.arange(5))
    dim = torch.export.Dim
    text = {0: dim("batch", min=1, max=4096), 1: dim("tokens", min=1, max=1 << 20)}
    free = (text, text, {0: dim("images", min=1, max=4096)}, {0: dim("places", min=1, max=1 << 20)})
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

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        image_places: torch.Tensor,
    ) -> torch.Tensor:
        decoder = self.model.get_submodule(decoder_path(self.config).removeprefix("model."))
        words = decoder.embed_tokens(input_ids)
        features = _ENCODERS[self.config.model_type](self, pixel_values)
        states = torch.ops.adaptc.place(words, image_places, features)
        out = decoder(inputs_embeds=states, position_ids=position_ids, use_cache=False)
        logits: torch.Tensor = self.lm_head(out.last_hidden_state)
        return logits


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
    tower = whole.model.vision_model
    patches = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    states = tower.encoder(inputs_embeds=patches + tower.embeddings.position_embedding(whole.positions))
    features: torch.Tensor = whole.model.connector(tower.post_layernorm(states.last_hidden_state))
    return features


def _patch_positions(tower: Any) -> torch.Tensor:
    """The positions that an image without padding has, int64 [1, patches], as transformers works them out."""
    side = tower.config.image_size
    patches = side // tower.config.patch_size
    seen: list[torch.Tensor] = []
    hook = tower.embeddings.position_embedding.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        tower.embeddings(torch.zeros(1, 3, side, side), torch.ones(1, patches, patches, dtype=torch.bool))
    hook.remove()
    return seen[0]


_ENCODERS: Mapping[str, Callable[[_Whole, torch.Tensor], torch.Tensor]] = {
    "llava": _llava,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
}

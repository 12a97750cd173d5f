"""Multimodal language model -> FX graph: its image encoder at full depth, its decoder stamped as any other.

pixels ─> encoder ─> projector ──┐
ids ─> embedding ─> place ───────┴─> layer 0 ─ … ─> norm, head ─> logits
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from adaptc.capture.dynamic_rope import follow_positions
from adaptc.capture.kinds import examples, layer_kinds, shallow
from adaptc.capture.stamp import stamp
from adaptc.capture.tidy import tidy
from adaptc.capture.weights import attach, tied
from adaptc.errors import LoadError
from adaptc.families.base import MultimodalFamily
from adaptc.families.model import model_of, multimodal_of
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.operators import attention
from adaptc.ir.operators.place import PATCHES, WINDOWS
from adaptc.runtime.bundle.names import IMAGE_PLACES, INPUT_IDS, LOGITS, PIXEL_VALUES

if TYPE_CHECKING:
    from transformers import PretrainedConfig

dim = torch.export.Dim


def capture_multimodal(config: PretrainedConfig, weights: Mapping[str, torch.Tensor]) -> FxGraph:
    """Capture a multimodal language model as a pure function of its texts and images.

    Args:
        config: The model's transformers config.
        weights: Parameters by their transformers names; they are shared, not copied.

    Returns:
        FxGraph(input_ids int64[batch, tokens], position_ids int64[batch, tokens], pixel_values float32[images, ...],
        image_places int64[places]) -> logits[batch, tokens, vocab]. Where images are of any size, there is one:
        pixel_values float32[cells, patches, numbers] with patch_positions int64[cells, patches, 2], and patch_windows
        int64[windows, cells of a window] where an encoder sees windows; and position_ids are int64[3, batch, tokens].

    Raises:
        LoadError: it cannot be exported, a layer cannot be stamped, or a weight is missing or of another shape.
    """
    kinds = layer_kinds(config.text_config)
    family = multimodal_of(config)
    assert family is not None, "a multimodal model has a family"
    module, ties = _export(config, family, kinds)
    sizes = _dims(module)
    tidy(module)
    stamp(module, kinds, f"{family.decoder}.layers")
    attach(module, weights, ties)
    return FxGraph(module, sizes).fork()


def _dims(module: fx.GraphModule) -> dict[str, str]:
    """The names of the exporter's symbols, by the inputs that have them."""
    values = {str(node.target): node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"}
    batch, tokens = values[INPUT_IDS].shape
    windows = {str(values[WINDOWS].shape[0]): "windows"} if WINDOWS in values else {}
    return {
        **windows,
        str(batch): "batch",
        str(tokens): "tokens",
        str(values[PIXEL_VALUES].shape[0]): "cells" if PATCHES in values else "images",
        str(values[IMAGE_PLACES].shape[0]): "places",
    }


def _export(
    config: PretrainedConfig, family: MultimodalFamily, kinds: list[str]
) -> tuple[fx.GraphModule, dict[str, str]]:
    """Export the model with one decoder layer of each kind; also return which parameters are one."""
    from transformers import initialization

    attention.register()
    small = copy.deepcopy(config)
    small.text_config = shallow(config.text_config, examples(kinds))
    # No weight is written, so their pages never exist; computed buffers are real.
    with initialization.no_init_weights():
        model = model_of(
            small, attn_implementation={"text_config": attention.NAME, "vision_config": "sdpa"}, dtype=torch.float32
        ).eval()
    model.tie_weights()
    follow_positions(model)
    if family.prepare is not None:
        family.prepare(model.model)
    kind = _Windowed if family.window is not None else _AnySize if family.any_size else _Whole
    whole = kind(model, family)
    inputs, free = whole.examples()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            module = torch.export.export(whole, inputs, dynamic_shapes=free).module()
        except Exception as error:  # torch.export raises whatever the traced code does
            cause = str(error).strip().splitlines()[0][:200]
            raise LoadError(f"capture: {config.model_type}: {type(error).__name__}: {cause}") from error
    assert isinstance(module, fx.GraphModule)
    module.graph.set_codegen(fx.graph.CodeGen())
    output = module.graph.output_node()
    output.args = (tuple(output.all_input_nodes),)
    module.meta["outputs"] = (LOGITS,)
    return module, tied(model)


class _Whole(torch.nn.Module):
    """A model that takes square images of one size, as a function of where they go.

    Parameters have the names they have in transformers' own model.
    """

    positions: torch.Tensor | None

    def __init__(self, model: Any, family: MultimodalFamily) -> None:
        super().__init__()
        self.model = model.model
        self.lm_head = model.lm_head
        self.config = model.config
        self.family = family
        constant = None if family.patch_positions is None else family.patch_positions(self.model)
        self.register_buffer("positions", constant)

    def examples(self) -> tuple[tuple[torch.Tensor, ...], tuple[dict[int, Any], ...]]:
        """Return example inputs, and which of their sizes are free. Sizes of 0 and 1 would be taken for constants."""
        ids, side = torch.zeros(2, 7, dtype=torch.int64), self.config.vision_config.image_size
        text = {0: dim("batch", min=1, max=4096), 1: dim("tokens", min=1, max=1 << 20)}
        places = {0: dim("places", min=1, max=1 << 20)}
        inputs = ids, ids.clone(), torch.zeros(3, 3, side, side), torch.arange(5)
        return inputs, (text, text, {0: dim("images", min=1, max=4096)}, places)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        image_places: torch.Tensor,
    ) -> torch.Tensor:
        features = self.family.encode(self.model, pixel_values, self.positions)
        return self.logits(input_ids, position_ids, features, image_places)

    def logits(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, features: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        decoder = self.model.get_submodule(self.family.decoder.removeprefix("model."))
        states = torch.ops.adaptc.place(decoder.embed_tokens(input_ids), places, features)
        seen = {"image_places": places} if self.family.whole else {}
        out = decoder(inputs_embeds=states, position_ids=position_ids, use_cache=False, **seen)
        logits: torch.Tensor = self.lm_head(out.last_hidden_state)
        return logits


class _AnySize(_Whole):
    """A model that takes one image of any size; positions count text, rows and columns."""

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
        inputs = ids, ids.expand(3, 2, 7).clone(), pixels, corners, torch.arange(5)
        return inputs, ({0: batch, 1: tokens}, {1: batch, 2: tokens}, {0: cells}, {0: cells}, places)

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        patch_positions: torch.Tensor,
        image_places: torch.Tensor,
    ) -> torch.Tensor:
        features = self.family.encode(self.model, pixel_values.flatten(0, 1), patch_positions.flatten(0, 1))
        return self.logits(input_ids, position_ids, features, image_places)


class _Windowed(_AnySize):
    """One whose encoder sees the image window by window."""

    def examples(self) -> tuple[tuple[torch.Tensor, ...], tuple[dict[int, Any], ...]]:
        inputs, free = super().examples()
        assert self.family.window is not None, "a windowed family says how large its windows are"
        windows = torch.zeros(2, self.family.window(self.config.vision_config) ** 2, dtype=torch.int64)
        return (*inputs[:-1], windows, inputs[-1]), (*free[:-1], {0: dim("windows", max=1 << 20)}, free[-1])

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        patch_positions: torch.Tensor,
        patch_windows: torch.Tensor,
        image_places: torch.Tensor,
    ) -> torch.Tensor:
        pixels, corners = pixel_values.flatten(0, 1), patch_positions.flatten(0, 1)
        features = self.family.encode(self.model, pixels, corners, patch_windows)
        return self.logits(input_ids, position_ids, features, image_places)

"""Encoder -> FX graph: one layer of each kind exported, the full depth stamped, and what makes vectors of its states.

ids, padding ─> embedding ─> layer 0 ─ … ─> pooling ─> embedding of the text
                                        └─> head ────> logits of its labels
features of a sound ─> convolutions ─> layer 0 ─ … ─> states
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from adaptc.capture.kinds import examples, layer_kinds, shallow
from adaptc.capture.plain import plain
from adaptc.capture.pooling import pooled
from adaptc.capture.stamp import stamp
from adaptc.capture.tidy import tidy
from adaptc.capture.unfuse import unfuse
from adaptc.capture.weights import attach
from adaptc.errors import LoadError
from adaptc.families.base import EncoderFamily
from adaptc.families.encoder_model import classifies, encoder_model, encoder_of, takes_token_types
from adaptc.families.sentences import MEAN, Sentences
from adaptc.ir.fx_graph import VIEWS, FxGraph
from adaptc.ir.operators import encoder_attention
from adaptc.runtime.bundle.names import (
    ATTENTION_MASK,
    EMBEDDING,
    INPUT_FEATURES,
    INPUT_IDS,
    LOGITS,
    STATES,
    TOKEN_TYPE_IDS,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig

BATCH, TOKENS = "batch", "tokens"


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What an encoder is exported with.

    Attributes:
        rows: An example of each input, by name.
        forward: Takes them in this order and returns the output.
        output: What the output is called.
    """

    rows: Mapping[str, torch.Tensor]
    forward: Callable[..., torch.Tensor]
    output: str


def capture_encoder(
    config: PretrainedConfig, weights: Mapping[str, torch.Tensor], sentences: Sentences = MEAN
) -> FxGraph:
    """Capture an encoder as a pure function of its texts or sounds.

    Args:
        config: The model's transformers config.
        weights: Parameters by their transformers names; they are shared, not copied.
        sentences: How the states of a text become one vector; not read by a model with labels, or of sounds.

    Returns:
        FxGraph(input_ids int64[batch, tokens], attention_mask int64[batch, tokens]) -> embedding[batch, width], or
        logits[batch, labels]; with token_type_ids int64[batch, tokens] after them where texts may come in pairs. Of
        sounds: (input_features float32[batch, mels, frames]) -> states[batch, positions, width].

    Raises:
        LoadError: it cannot be exported, a layer cannot be stamped, or a weight is missing or of another shape.
    """
    family = encoder_of(config)
    assert family is not None, "what is captured here is an encoder"
    kinds = layer_kinds(config)
    small = shallow(config, examples(kinds))
    setattr(small, family.depth, small.num_hidden_layers)
    module, stem = _export(small, family, sentences)
    sizes = _dims(module)
    tidy(module)
    views = unfuse(module)
    stamp(module, kinds, f"{stem}{family.layers}")
    if views := attach(module, weights, {}, views):
        module.meta[VIEWS] = views
    return FxGraph(module, sizes).fork()


def _export(config: PretrainedConfig, family: EncoderFamily, sentences: Sentences) -> tuple[fx.GraphModule, str]:
    """Export a model of few layers; also return what stands before the path of its layers."""
    from transformers import initialization

    encoder_attention.register()
    with initialization.no_init_weights():  # pages of parameters never exist; computed buffers are real
        model = encoder_model(config, attn_implementation=encoder_attention.NAME, dtype=torch.float32).eval()
    plain(model)
    of_text = family.reads == "text"
    inputs = _text(model, family, sentences) if of_text else _sound(model)
    free = {0: torch.export.Dim(BATCH, min=1, max=1 << 16)} | (
        {1: torch.export.Dim(TOKENS, min=1, max=1 << 20)} if of_text else {}
    )
    model.forward = inputs.forward
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            rows = tuple(inputs.rows.values())
            module = torch.export.export(model, rows, dynamic_shapes=tuple(free for _ in rows)).module()
        except Exception as error:  # torch.export raises whatever the traced code does
            cause = str(error).strip().splitlines()[0][:200]
            raise LoadError(f"capture: {config.model_type}: {type(error).__name__}: {cause}") from error
    assert isinstance(module, fx.GraphModule)
    module.graph.set_codegen(fx.graph.CodeGen())
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node, name in zip(placeholders, inputs.rows, strict=True):
        node.target = node.name = name
    output = module.graph.output_node()
    output.args = (tuple(output.all_input_nodes),)
    module.meta["outputs"] = (inputs.output,)
    return module, f"{model.base_model_prefix}." if classifies(config) else ""


def _text(model: Any, family: EncoderFamily, sentences: Sentences) -> _Inputs:
    """The inputs of an encoder of texts. Sizes of 0 and 1 would be taken for constants."""
    config, encode, positions = model.config, model.forward, family.positions
    assert positions is not None, f"{family.model_type}: a family of texts has positions"
    ids = torch.full((2, 7), 3)
    rows = {INPUT_IDS: ids, ATTENTION_MASK: torch.ones_like(ids)}
    pairs = takes_token_types(config)
    if pairs:
        rows[TOKEN_TYPE_IDS] = torch.zeros_like(ids)
    of_class = classifies(config)

    def forward(ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None = None) -> torch.Tensor:
        given = {INPUT_IDS: ids, ATTENTION_MASK: mask, "position_ids": positions(config, ids)}
        if family.token_types:
            given[TOKEN_TYPE_IDS] = torch.zeros_like(ids) if types is None else types
        result = encode(**given)
        if of_class:
            logits: torch.Tensor = result.logits
            return logits
        return pooled(result.last_hidden_state, mask, sentences)

    return _Inputs(rows, forward, LOGITS if of_class else EMBEDDING)


def _sound(model: Any) -> _Inputs:
    """The inputs of an encoder of sounds, whose length is fixed."""
    config, encode = model.config, model.forward
    features = torch.zeros(2, config.num_mel_bins, 2 * config.max_source_positions)

    def forward(features: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = encode(features).last_hidden_state
        return states

    return _Inputs({INPUT_FEATURES: features}, forward, STATES)


def _dims(module: fx.GraphModule) -> dict[str, str]:
    """The names of the exporter's symbols, by the first input that has them."""
    first = next(node for node in module.graph.nodes if node.op == "placeholder")
    named = zip(first.meta["val"].shape, (BATCH, TOKENS), strict=False)
    return {str(size): name for size, name in named if not isinstance(size, int)}

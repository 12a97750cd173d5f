"""Kinds of layers: which layers of a decoder differ in nothing but their weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

BY_LAYER = ("layer_types", "no_rope_layers")
"""Fields of config classes that hold a value for each layer, by which layers are of different kinds."""


def layer_kinds(config: PretrainedConfig) -> list[str]:
    """Return the kind of each decoder layer: what its attention sees, and whether it has experts where others do."""
    stated = [values for field in BY_LAYER if (values := getattr(config, field, None))]
    dense = ["" if sparse else "without experts" for sparse in _sparse(config)]
    parts = [[*(str(values[layer]) for values in stated), each] for layer, each in enumerate(dense)]
    return [" ".join(part for part in own if part) or "layer" for own in parts]


def examples(kinds: Sequence[str]) -> list[int]:
    """Return the layers of a model that is exported: the first, and one of each kind, which is stamped."""
    return [0, *(kinds.index(kind) for kind in dict.fromkeys(kinds))]


def shallow(config: PretrainedConfig, layers: Sequence[int]) -> PretrainedConfig:
    """Return the config of a model with only these layers, which gives logits and nothing beside them."""
    small: Any = copy.deepcopy(config)
    small.num_hidden_layers = len(layers)
    for field in BY_LAYER:
        if values := getattr(config, field, None):
            setattr(small, field, [values[layer] for layer in layers])
    sparse = _sparse(config)
    if hasattr(small, "moe_layers"):
        small.moe_layers = [place for place, layer in enumerate(layers) if sparse[layer]]
    if getattr(small, "mlp_only_layers", None) is not None:
        small.mlp_only_layers = [place for place, layer in enumerate(layers) if not sparse[layer]]
        small.decoder_sparse_step = 1
    if not hasattr(type(small), "sliding_window"):
        small.sliding_window = None  # OLMoE's attention is told of a key that its mask does not read
    if getattr(small, "output_router_logits", None):
        small.output_router_logits = False
    return small


def _sparse(config: Any) -> list[bool]:
    """Which layers have experts, by the keys of Llama's and Qwen's models; all, or none, where a config has none."""
    layers = range(int(config.num_hidden_layers))
    if (stated := getattr(config, "moe_layers", None)) is not None:
        return [layer in stated for layer in layers]
    dense = getattr(config, "mlp_only_layers", None)
    if dense is None:
        return [True for _ in layers]
    step = config.decoder_sparse_step
    return [layer not in dense and config.num_experts > 0 and (layer + 1) % step == 0 for layer in layers]

"""Kinds of layers: which layers of a decoder differ in nothing but their weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_DENSE = " without experts"


def layer_kinds(config: PretrainedConfig) -> list[str]:
    """Return the kind of each decoder layer: what its attention sees, and whether it has experts where others do."""
    types = getattr(config, "layer_types", None)
    kinds = list(types) if types else ["layer"] * int(config.num_hidden_layers)
    return [kind if sparse else kind + _DENSE for kind, sparse in zip(kinds, _sparse(config), strict=True)]


def shallow(config: PretrainedConfig, kinds: list[str]) -> PretrainedConfig:
    """Return the config of a model with only these layers, which gives logits and nothing beside them."""
    small: Any = copy.deepcopy(config)
    small.num_hidden_layers = len(kinds)
    if getattr(small, "layer_types", None):
        small.layer_types = [kind.removesuffix(_DENSE) for kind in kinds]
    if getattr(small, "mlp_only_layers", None) is not None:
        small.mlp_only_layers = [layer for layer, kind in enumerate(kinds) if kind.endswith(_DENSE)]
        small.decoder_sparse_step = 1
    if not hasattr(type(small), "sliding_window"):
        small.sliding_window = None  # OLMoE's attention is told of a key that its mask does not read
    if getattr(small, "output_router_logits", None):
        small.output_router_logits = False
    return small


def _sparse(config: Any) -> list[bool]:
    """Which layers have experts, by the keys of Qwen's models; all, or none, where a config has no such keys."""
    layers = range(int(config.num_hidden_layers))
    dense = getattr(config, "mlp_only_layers", None)
    if dense is None:
        return [True for _ in layers]
    step = config.decoder_sparse_step
    return [layer not in dense and config.num_experts > 0 and (layer + 1) % step == 0 for layer in layers]

"""Dynamic NTK's frequencies as arithmetic on positions, in the place of code that remembers earlier texts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch


def follow_positions(model: Any) -> None:
    """Have rotary embeddings of the kind "dynamic" compute their frequencies anew from each text's length, in place.

    transformers keeps the frequencies of the longest text it has seen until a short one comes, which no graph says. For
    a first text, and for one that is not beyond `max_position_embeddings`, both are the same.

    Args:
        model: transformers' model.
    """
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if "dynamic" in (kinds.values() if isinstance(kinds, dict) else (kinds,)):
            plain = inspect.unwrap(type(module).forward)
            module.forward = partial(_forward, module, plain)


def _forward(
    module: Any, plain: Callable[..., Any], x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None
) -> Any:
    """The module's own forward, after its frequencies were computed where their kind is dynamic."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    of_layer = {} if layer_type is None else {"layer_type": layer_type}
    kind = module.rope_type if layer_type is None else module.rope_type[layer_type]
    with torch.no_grad():
        if kind == "dynamic":
            frequencies, module.attention_scaling = ROPE_INIT_FUNCTIONS[kind](
                module.config, x.device, seq_len=position_ids.max() + 1, **of_layer
            )
            getattr(module, "inv_freq" if layer_type is None else f"{layer_type}_inv_freq").copy_(frequencies)
        return plain(module, x, position_ids, **of_layer)

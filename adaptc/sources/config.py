"""From the values of a config.json, or of a GGUF header, to a transformers config that adaptc can capture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.errors import LoadError, foreign
from adaptc.families.model import multimodal_of, text_of
from adaptc.families.table import family_of, supported, supported_decoders

LAYER_TYPES = ("full_attention", "sliding_attention")
"""Kinds of layers that capture knows."""

_MAX_LAYERS = 1000
_MAX_SIZE = 1 << 31
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
_OPTIONAL = ("num_key_value_heads", "head_dim")


def build_config(origin: str, model_type: Any, values: Mapping[str, Any]) -> Any:
    """Return the transformers config of these values.

    Args:
        origin: The model's name in the spec, for errors.
        model_type: transformers' name of the architecture, as the file states it.
        values: Keyword arguments of the config.

    Raises:
        LoadError: no family takes the architecture, or transformers refuses a value.
    """
    from transformers import CONFIG_MAPPING

    if family_of(model_type) is None:
        known = ", ".join(supported())
        raise LoadError(f"{origin}: architecture {model_type!r} is not supported; supported: {known}")
    text = values.get("text_config") or values
    if not isinstance(text, Mapping):
        raise LoadError(f"{origin}: text_config is {str(text)[:40]}; an object is right")
    # A damaged count would have transformers build lists, and models, of that many layers.
    layers = text.get("num_hidden_layers", 1)
    if isinstance(layers, int) and not 1 <= layers <= _MAX_LAYERS:
        raise LoadError(f"{origin}: num_hidden_layers is {layers}; adaptc takes 1 to {_MAX_LAYERS}")
    with foreign(f"{origin}: transformers refuses this {model_type} config"):
        config = CONFIG_MAPPING[model_type](**values)
    _check_sizes(origin, text_of(config))
    _check_layers(origin, text_of(config))
    _check_parts(origin, config)
    return config


def _check_sizes(origin: str, text: Any) -> None:
    """Refuse sizes that no model can have."""
    for name in _SIZES:
        value = getattr(text, name, None)
        if value is None and name in _OPTIONAL:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_SIZE:
            raise LoadError(f"{origin}: {name} is {str(value)[:40]}; a whole number from 1 to {_MAX_SIZE:,} is right")
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if head_dim < 2 or head_dim % 2:
        raise LoadError(f"{origin}: heads are {head_dim} wide; RoPE turns pairs of numbers: an even width is right")
    epsilon = getattr(text, "rms_norm_eps", 1e-6)
    if not isinstance(epsilon, int | float) or not 0 <= epsilon < 1:
        raise LoadError(f"{origin}: rms_norm_eps is {str(epsilon)[:40]}; a number from 0 to 1 is right")


def _check_layers(origin: str, text: Any) -> None:
    """Refuse kinds of layers that capture does not know, and windows without a width."""
    kinds = getattr(text, "layer_types", None) or []
    for kind in kinds:
        if kind not in LAYER_TYPES:
            raise LoadError(f"{origin}: layer_types has {kind!r}; adaptc captures {' and '.join(LAYER_TYPES)}")
    window = getattr(text, "sliding_window", None)
    if window is not None and (not isinstance(window, int) or window < 1):
        raise LoadError(f"{origin}: sliding_window is {str(window)[:40]}; null or a whole number of positions is right")


def _check_parts(origin: str, config: Any) -> None:
    """Refuse a multimodal model with a part that adaptc does not capture."""
    family = multimodal_of(config)
    if family is None:
        return
    parts = (
        ("a language model", config.text_config, family.decoders or supported_decoders()),
        ("an image encoder", config.vision_config, family.encoders),
    )
    for what, part, known in parts:
        if known and part.model_type not in known:
            raise LoadError(
                f"{origin}: {config.model_type} with {what} of kind {part.model_type!r} is not supported; "
                f"supported: {', '.join(known)}"
            )
    side = getattr(config.vision_config, "image_size", 0)
    if not isinstance(side, int):
        raise LoadError(f"{origin}: image_size is {list(side)}; adaptc takes square images, of one number")

"""From the values of a config.json, or of a GGUF header, to a transformers config that adaptc can capture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.errors import LoadError, foreign, one_line
from adaptc.families.encoder_model import encoder_of, refuse_head
from adaptc.families.model import multimodal_of, text_of
from adaptc.families.table import decoders_within, family_of, supported

LAYER_TYPES = ("full_attention", "sliding_attention")
"""Kinds of layers that capture knows."""

CHUNKED = "chunked_attention"
"""One more, of models whose configs say how long a chunk is."""

_MAX_SIZE = 1 << 31
_MAX_LABELS = 1_000_000
_SIZES = {
    "num_hidden_layers": 1000,
    "hidden_size": _MAX_SIZE,
    "intermediate_size": _MAX_SIZE,
    "num_attention_heads": _MAX_SIZE,
    "num_key_value_heads": _MAX_SIZE,
    "head_dim": _MAX_SIZE,
    "vocab_size": _MAX_SIZE,
    "num_experts_per_tok": 1 << 16,
    "moe_intermediate_size": _MAX_SIZE,
    "shared_expert_intermediate_size": _MAX_SIZE,
    "decoder_sparse_step": _MAX_SIZE,
    "max_position_embeddings": _MAX_SIZE,
    # GPT-2's and Falcon's own.
    "n_inner": _MAX_SIZE,
    "n_head": _MAX_SIZE,
    "n_layer": 1000,
    "ffn_hidden_size": _MAX_SIZE,
    "num_kv_heads": _MAX_SIZE,
    # Llama 4's.
    "attention_chunk_size": _MAX_SIZE,
    "floor_scale": _MAX_SIZE,
    "interleave_moe_layer_step": _MAX_SIZE,
    "intermediate_size_mlp": _MAX_SIZE,
    "no_rope_layer_interval": _MAX_SIZE,
    "original_max_position_embeddings": _MAX_SIZE,
    # Encoders' own.
    "type_vocab_size": _MAX_SIZE,
    "encoder_layers": 1000,
    "encoder_attention_heads": _MAX_SIZE,
    "encoder_ffn_dim": _MAX_SIZE,
    "d_model": _MAX_SIZE,
    "max_source_positions": _MAX_SIZE,
    "num_mel_bins": _MAX_SIZE,
}
"""Sizes of a language model, each with the largest that is taken."""

_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps")


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
        raise LoadError(
            f"{origin}: architecture {model_type!r} is not supported; supported: {known}. A family is one value in "
            "adaptc/families/decoders/ and its entry in adaptc/families/table.py, or an entry point of the group "
            "adaptc.families in a package of yours (CONTRIBUTING.md, Adding a family of decoders)"
        )
    text = values.get("text_config") or values
    if not isinstance(text, Mapping):
        raise LoadError(f"{origin}: text_config is {one_line(text)[:40]}; an object is right")
    aliases = CONFIG_MAPPING[model_type].attribute_map
    for part in (text, *(part for part in values.values() if isinstance(part, Mapping))):
        _check_sizes(origin, part, aliases)
        _check_lists(origin, part, part.get("num_hidden_layers"))  # transformers reads them as it makes its config
    _check_labels(origin, values)
    with foreign(f"{origin}: transformers refuses this {model_type} config"):
        config = CONFIG_MAPPING[model_type](**values)
    _check_layers(origin, text_of(config))
    _check_parts(origin, config)
    if encoder_of(config) is not None:
        refuse_head(origin, config)
        config.tie_word_embeddings = False  # there is no head that could be the table
    return config


def _check_sizes(origin: str, text: Mapping[str, Any], aliases: Mapping[str, str]) -> None:
    """Refuse sizes that no model can have: transformers would divide by them, and build lists that long."""
    for size, largest in _SIZES.items():
        for name in {size, aliases.get(size, size)}:
            value = text.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and not 1 <= value <= largest:
                raise LoadError(
                    f"{origin}: {name} is {one_line(value)[:40]}; a whole number from 1 to {largest:,} is right"
                )
    for name in _EPSILONS:
        epsilon = text.get(name)
        if isinstance(epsilon, int | float) and not 0 <= epsilon < 1:
            raise LoadError(f"{origin}: {name} is {one_line(epsilon)[:40]}; a number from 0 to 1 is right")


def _check_labels(origin: str, values: Mapping[str, Any]) -> None:
    """Refuse a number of labels for which transformers would make names until the memory is full."""
    for part in (values, *(part for part in values.values() if isinstance(part, Mapping))):
        labels = part.get("num_labels")
        if labels is not None and not (isinstance(labels, int) and 0 <= labels <= _MAX_LABELS):
            raise LoadError(f"{origin}: num_labels is {one_line(labels)[:40]}; at most {_MAX_LABELS:,} is right")


def _check_lists(origin: str, text: Mapping[str, Any], depth: Any) -> None:
    """Refuse lists of another depth than the model's."""
    for name in ("layer_types", "no_rope_layers"):
        values = text.get(name)
        if values is None or not isinstance(depth, int):
            continue
        if not isinstance(values, list) or len(values) < depth:
            raise LoadError(
                f"{origin}: {name} is {one_line(values)[:40]}; a list with a value for each of {depth} layers is right"
            )


def _check_layers(origin: str, text: Any) -> None:
    """Refuse kinds of layers that capture does not know, lists of another depth, and windows without a width."""
    _check_lists(origin, vars(text), text.num_hidden_layers)
    kinds = getattr(text, "layer_types", None) or []
    known = LAYER_TYPES if getattr(text, "attention_chunk_size", None) is None else (LAYER_TYPES[0], CHUNKED)
    for kind in kinds:
        if kind not in known:
            raise LoadError(f"{origin}: layer_types has {kind!r}; adaptc captures {' and '.join(known)}")
    window = getattr(text, "sliding_window", None)
    if window == 0 and kinds and "sliding_attention" not in kinds:
        return  # Qwen2 with experts says so of no window
    if window is not None and (not isinstance(window, int) or window < 1):
        raise LoadError(
            f"{origin}: sliding_window is {one_line(window)[:40]}; null or a whole number of positions is right"
        )


def _check_parts(origin: str, config: Any) -> None:
    """Refuse a multimodal model with a part that adaptc does not capture."""
    family = multimodal_of(config)
    if family is None:
        return
    parts = (
        ("a language model", config.text_config, family.decoders or decoders_within()),
        ("an image encoder", config.vision_config, family.encoders),
    )
    for what, part, known in parts:
        if known and part.model_type not in known:
            raise LoadError(
                f"{origin}: {config.model_type} with {what} of kind {part.model_type!r} is not supported; "
                f"supported: {', '.join(known)}"
            )
    token, words = config.image_token_id, config.text_config.vocab_size
    if not isinstance(token, int) or not 0 <= token < words:
        raise LoadError(f"{origin}: the image token's id is {one_line(token)[:40]}; a number below vocab_size is right")
    if family.fault is not None and (fault := family.fault(config)):
        raise LoadError(f"{origin}: {fault}")
    side = getattr(config.vision_config, "image_size", 0)
    if not isinstance(side, int):
        raise LoadError(f"{origin}: image_size is {list(side)}; adaptc takes square images, of one number")

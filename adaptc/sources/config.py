"""From the values of a config.json, or of a GGUF header, to a transformers config that adaptc can capture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.errors import LoadError, one_line
from adaptc.families.model import multimodal_of
from adaptc.families.table import family_of, supported, supported_decoders

_MAX_LAYERS = 1000


def build_config(origin: str, model_type: Any, values: Mapping[str, Any]) -> Any:
    """Return the transformers config of these values.

    Args:
        origin: The model's name in the spec, for errors.
        model_type: transformers' name of the architecture, as the file states it.
        values: Keyword arguments of the config.

    Raises:
        LoadError: no family takes the architecture, or transformers refuses a value.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    if family_of(model_type) is None:
        known = ", ".join(supported())
        raise LoadError(f"{origin}: architecture {model_type!r} is not supported; supported: {known}")
    # A damaged count would have transformers build lists, and models, of that many layers.
    layers = (values.get("text_config") or values).get("num_hidden_layers", 1)
    if isinstance(layers, int) and not 1 <= layers <= _MAX_LAYERS:
        raise LoadError(f"{origin}: num_hidden_layers is {layers}; adaptc takes 1 to {_MAX_LAYERS}")
    try:
        config = CONFIG_MAPPING[model_type](**values)
    except (
        StrictDataclassError,
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        ZeroDivisionError,
    ) as error:
        raise LoadError(f"{origin}: transformers refuses this {model_type} config: {one_line(error)}") from error
    _check_parts(origin, config)
    return config


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

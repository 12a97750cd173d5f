"""Multimodal language models: which there are, and how transformers puts them together.

All of them are an image encoder with a projector whose features take the places of image tokens in front of a
decoder. What differs is where each part stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class Family:
    """One of transformers' families.

    Attributes:
        decoder: Module path of the decoder.
        encoders: The image encoders it may have, by transformers' `model_type`; empty for the one of its own.
        decoders: The decoders it may have, likewise; empty for those that adaptc captures alone.
        around: Tokens that its processor writes before and after an image's, where the tokenizer has them.
    """

    decoder: str
    encoders: tuple[str, ...] = ()
    decoders: tuple[str, ...] = ()
    around: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


_FAKE = "<fake_token_around_image>"
_AROUND = ((_FAKE, "<global-img>"), (_FAKE,))

MULTIMODAL: Mapping[str, Family] = MappingProxyType(
    {
        "llava": Family("model.language_model", ("clip_vision_model", "siglip_vision_model")),
        "idefics3": Family("model.text_model", around=_AROUND),
        "smolvlm": Family("model.text_model", around=_AROUND),
        "qwen2_vl": Family("model.language_model", decoders=("qwen2_vl_text",)),
    }
)
"""The families adaptc captures, by transformers' `model_type`."""


def family_of(config: Any) -> Family | None:
    """What is known of a multimodal model; None for any other."""
    return MULTIMODAL.get(config.model_type)


def text_of(config: Any) -> Any:
    """The config of the part that writes: the config itself but for a multimodal model."""
    return config if family_of(config) is None else config.text_config


def decoder_path(config: Any) -> str:
    """Module path of the decoder: its layers are at `….layers.N`."""
    family = family_of(config)
    return "model" if family is None else family.decoder


def model_of(config: Any, **options: Any) -> Any:
    """The model of a config as transformers builds it; `options` are those of `from_config`."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind = AutoModelForCausalLM if family_of(config) is None else AutoModelForImageTextToText
    return kind.from_config(config, **options)


def renamed(config: Any, names: Iterable[str]) -> dict[str, str]:
    """What transformers calls each tensor of a file now; checkpoints keep the names of the time they were saved."""
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    with torch.device("meta"):
        model = model_of(config)
    state = model.state_dict()
    rules = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
    return {name: rename_source_key(name, rules, [], model.base_model_prefix, state)[0] for name in names}

"""A model as transformers builds it from its config: its language model, its decoder, its parameters' names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from adaptc.errors import LoadError, foreign
from adaptc.families.base import DecoderFamily, ModuleNames, MultimodalFamily
from adaptc.families.encoder_model import encoder_model, encoder_of, part_names
from adaptc.families.table import family_of


def multimodal_of(config: Any) -> MultimodalFamily | None:
    """Return the family of a multimodal language model; None for any other model.

    Args:
        config: The model's transformers config, or what stands in for one.
    """
    family = family_of(config.model_type)
    return family if isinstance(family, MultimodalFamily) else None


def text_of(config: Any) -> Any:
    """Return the config of the language model: the config itself but for a multimodal model."""
    return config if multimodal_of(config) is None else config.text_config


def names_of(config: Any) -> ModuleNames:
    """Return what the model calls its parts: where its decoder is, and what is in it."""
    family = family_of(config.model_type)
    if isinstance(family, MultimodalFamily):
        return replace(names_of(config.text_config), decoder=family.decoder)
    return family.names if isinstance(family, DecoderFamily) else ModuleNames()


def decoder_path(config: Any) -> str:
    """Return the decoder's module path: its layers are at `….layers.N`."""
    return names_of(config).decoder


def table_name(config: Any) -> str:
    """Return the name of the embedding's weight."""
    names = names_of(config)
    return f"{names.decoder}.{names.table}.weight"


def head_name(config: Any) -> str:
    """Return the name of the head's weight."""
    return f"{names_of(config).head}.weight"


def kv_heads_of(config: Any) -> int:
    """Return how many heads of keys and values a decoder's layers have."""
    family = family_of(config.model_type)
    own = family.kv_heads(config) if isinstance(family, DecoderFamily) and family.kv_heads is not None else None
    return int(own or getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def inner_width_of(config: Any) -> int:
    """Return how many neurons a decoder's feed-forward blocks have; four times its width where no key says it."""
    stated = (getattr(config, name, None) for name in ("intermediate_size", "n_inner", "ffn_hidden_size"))
    return int(next(filter(None, stated), 4 * config.hidden_size))


def model_of(config: Any, **options: Any) -> Any:
    """Build the model of a config; `options` are those of transformers' `from_config`.

    Raises:
        LoadError: transformers cannot build it: a value of the config is out of range.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    if encoder_of(config) is not None:
        return encoder_model(config, **options)
    kind = AutoModelForCausalLM if multimodal_of(config) is None else AutoModelForImageTextToText
    with foreign(f"{config.model_type}: transformers cannot build a model of this config"):
        return kind.from_config(config, **options)


def has_experts(config: Any) -> bool:
    """Return whether a language model has layers with a router and experts."""
    text = text_of(config)
    if getattr(text, "moe_layers", None) == []:
        return False
    return any(getattr(text, key, None) for key in ("num_experts", "num_local_experts"))


Stacks = dict[str, tuple[tuple[str, ...], ...]]
"""By today's parameter name [experts, rows, columns], the tensors of a file whose rows are its rows, one below the
other: for each of them the names of all experts' matrices, in order."""


def stacked(config: Any, names: Iterable[str]) -> tuple[dict[str, str], Stacks]:
    """Return today's parameter name for each tensor of a file of a model with experts.

    Files of their time, and those that transformers writes, have a matrix for each expert; its models have one
    parameter for all.

    Returns:
        Names of parameters that are stored in one piece, by tensor; and what the others are made of.

    Raises:
        LoadError: transformers makes a parameter of several tensors in a way that adaptc does not follow, or of some
            experts a matrix is missing.
    """
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    with torch.device("meta"):
        model = model_of(config)
    state = model.state_dict()
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    whole: dict[str, str] = {}
    parts: dict[str, dict[str, list[str]]] = {}
    for name in names:
        full, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if pattern is None:
            whole[name] = full
        else:
            parts.setdefault(full, {}).setdefault(pattern, []).append(name)
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    return whole, {full: _in_order(full, found, by_pattern) for full, found in parts.items()}


def _in_order(full: str, found: Mapping[str, list[str]], rules: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """The tensors that make up one parameter: all experts' matrices of each pattern, by the experts' numbers."""
    rule = rules[next(iter(found))]
    steps = [(type(step).__name__, getattr(step, "dim", None)) for step in rule.operations]
    if steps not in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)]):
        raise LoadError(f"{full}: transformers makes it of {len(found)} kinds of tensors by {steps}; adaptc does not")
    columns = []
    for pattern in rule.source_patterns:
        numbered = {int(re.findall(r"\.(\d+)\.", name)[-1]): name for name in found.get(pattern, ())}
        columns.append(tuple(numbered[number] for number in sorted(numbered)))
        count = max(map(len, found.values()))
        if missing := set(range(count)) - set(numbered):
            kind = pattern.rpartition(".*.")[2]
            raise LoadError(f"{full}: expert {min(missing)} of {count} has no {kind}; fetch the model again")
    return tuple(columns)


def renamed(config: Any, names: Iterable[str]) -> dict[str, str]:
    """Return today's parameter name for each tensor of a file; checkpoints keep the names of their time."""
    if (family := encoder_of(config)) is not None and family.part:
        return part_names(family, names)
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    with torch.device("meta"):
        model = model_of(config)
    state = model.state_dict()
    rules = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
    return {name: rename_source_key(name, rules, [], model.base_model_prefix, state)[0] for name in names}

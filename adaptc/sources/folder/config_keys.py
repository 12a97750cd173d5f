"""Keys of a config.json: read by transformers' config class, known to leave a graph as it is, refused, or unknown.

A key whose value makes another model, in a way that capture does not follow, is refused by name. A key that nobody
knows is a remark: transformers ignores it too, but a release that reads it may make another model of it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from adaptc.errors import LoadError, one_line
from adaptc.families.base import DecoderFamily, EncoderFamily
from adaptc.families.table import DECODERS, family_of

_ABSENT = "null, or no such key,"


def _is_null(value: Any) -> bool:
    return value is None


def _is_off(value: Any) -> bool:
    return value is None or value is False


def _is_on(value: Any) -> bool:
    return value is None or value is True


def _is_one(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and value == 1)


def _is_same(right: Any, value: Any) -> bool:
    return type(value) is type(right) and bool(value == right)


_ACCEPTED: Mapping[str, tuple[Callable[[Any], bool], str]] = MappingProxyType(
    {
        # transformers builds its masks by these; adaptc's attention is causal.
        "is_causal": (_is_on, "true"),
        "use_bidirectional_attention": (_is_off, "false"),
        # Part of each head's width without RoPE: the families' own code does not run so.
        "partial_rotary_factor": (_is_one, "1"),
        # Layers of several widths.
        "per_layer_config": (_is_null, _ABSENT),
        # Weights in files of other names.
        "transformers_weights": (_is_null, _ABSENT),
    }
)
"""Keys that make another model unless their value is accepted, and the value that is right."""

IMPLEMENTATION = (
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_attn_implementation_autoset",
    "experts_implementation",
    "_experts_implementation",
)
"""Keys that say by which code something is computed, not what: adaptc has its own, and fetches none."""

_WITHOUT_EFFECT = frozenset(
    (
        *IMPLEMENTATION,
        # What the files were made with, and for.
        "_commit_hash",
        "_name_or_path",
        "auto_map",
        "finetuning_task",
        "name_or_path",
        "tokenizer_class",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        # Training, and outputs beside the logits.
        "classifier_dropout",
        "gradient_checkpointing",
        "is_llama_config",
        "num_labels",
        "output_attentions",
        "output_router_logits",
        "pretraining_tp",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "use_cache",
        # transformers' older releases wrote these for every model; no decoder reads them.
        "add_cross_attention",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "is_decoder",
        "prefix",
        "pruned_heads",
        "sep_token_id",
        "task_specific_params",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "torchscript",
        "use_bfloat16",
        # What config classes and models read without a field of this name.
        "head_dim",
        "rope_scaling",
        "rope_theta",
        "rope_local_base_freq",
        "sliding_window_pattern",
        "_sliding_window_pattern",
        "_pad_token_id",
        "image_token_id",
        "quantization_config",
        "compression_config",
        "model_type",
    )
)


_CAPTURED = frozenset(
    (
        "architectures",
        "attention_bias",
        "attention_dropout",
        "attention_multiplier",
        "attn_logit_softcapping",
        "bos_token_id",
        "chunk_size_feed_forward",
        "clip_qkv",
        "decoder_sparse_step",
        "dtype",
        "embedding_multiplier",
        "eos_token_id",
        "final_logit_softcapping",
        "head_dim",
        "hidden_act",
        "hidden_activation",
        "hidden_size",
        "id2label",
        "initializer_range",
        "intermediate_size",
        "is_encoder_decoder",
        "label2id",
        "layer_types",
        "logits_scaling",
        "max_position_embeddings",
        "max_window_layers",
        "mlp_bias",
        "mlp_only_layers",
        "moe_intermediate_size",
        "norm_topk_prob",
        "num_attention_heads",
        "num_experts",
        "num_experts_per_tok",
        "num_hidden_layers",
        "num_key_value_heads",
        "num_local_experts",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "qkv_bias",
        "query_pre_attn_scalar",
        "residual_multiplier",
        "return_dict",
        "rms_norm_eps",
        "rope_parameters",
        "shared_expert_intermediate_size",
        "sliding_window",
        "tie_word_embeddings",
        "use_sliding_window",
        "vocab_size",
    )
)
"""Fields of transformers' config classes of adaptc's decoders that capture follows, or that leave a graph as it is."""


def refuse_keys(origin: str, values: Mapping[str, Any]) -> None:
    """Refuse a key that makes another model, in a config or a part of it.

    Args:
        origin: The model's name in the spec, for errors.
        values: The content of config.json.

    Raises:
        LoadError: there is one; the message names it.
    """
    for place, part in _parts(values):
        rules = _rules(part.get("model_type"))
        ropes = [rope for key in ("rope_parameters", "rope_scaling") if isinstance(rope := part.get(key), dict)]
        for key, value in [item for each in (part, *ropes) for item in each.items()]:
            accepts, right = rules.get(key, (None, ""))
            if accepts is not None and not accepts(value):
                raise LoadError(
                    f"{origin}: config.json: {place}{key} is {one_line(value)[:40]}, which makes another model than "
                    f"adaptc captures; {right} is right"
                )


def _rules(model_type: object) -> Mapping[str, tuple[Callable[[Any], bool], str]]:
    """The keys that make another model of a family, as in `_ACCEPTED`."""
    family = family_of(model_type)
    if not isinstance(family, DecoderFamily | EncoderFamily):
        return _ACCEPTED
    usual = {key: rule for key, rule in _ACCEPTED.items() if key not in family.keys}
    return usual | {key: (partial(_is_same, right), json.dumps(right)) for key, right in family.accepted.items()}


def unknown_keys(config: Any, values: Mapping[str, Any]) -> list[str]:
    """Return remarks on keys that nobody knows, and on those that only transformers' config class knows.

    Args:
        config: The transformers config of the values.
        values: The content of config.json.

    Returns:
        A sentence for each of the two kinds that there is.
    """
    unknown, new = _names(_unknown(config, values, "")), _names(_new(config, values, ""))
    remarks = []
    if unknown:
        remarks.append(
            f"config.json: {unknown}: no key of transformers' {config.model_type}; it is not read, nor by transformers"
        )
    if new:
        remarks.append(
            f"config.json: {new}: transformers reads it, adaptc was not tried with it; `adaptc verify` compares the two"
        )
    return remarks


def _names(keys: Iterable[str]) -> str:
    names = sorted(keys)
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _unknown(config: Any, values: Mapping[str, Any], place: str) -> Iterator[str]:
    """Keys that neither transformers' config class nor adaptc knows."""
    from transformers import GenerationConfig

    known = _WITHOUT_EFFECT | _ACCEPTED.keys() | GenerationConfig().to_dict().keys() | config.attribute_map.keys()
    known |= {*config.attribute_map.values(), *(field.name for field in dataclasses.fields(config))}
    known |= _own_keys(config.model_type)
    for key, value in values.items():
        part = getattr(config, key, None) if key in config.sub_configs else None
        if part is not None and isinstance(value, dict):
            yield from _unknown(part, value, f"{place}{key}.")
        elif key not in known:
            yield f"{place}{key}"


def _new(config: Any, values: Mapping[str, Any], place: str) -> Iterator[str]:
    """Fields of a decoder's config class that came after adaptc, where a file sets one to another value than usual."""
    if config.model_type in DECODERS:
        every = _CAPTURED | _WITHOUT_EFFECT | _ACCEPTED.keys() | _own_keys(config.model_type)
        for field in dataclasses.fields(config):
            if field.name not in every and field.name in values and values[field.name] != field.default:
                yield f"{place}{field.name}"
    for key in config.sub_configs:
        part = values.get(key)
        if isinstance(part, dict):
            yield from _new(getattr(config, key), part, f"{place}{key}.")


def new_fields(config: Any, values: Mapping[str, Any]) -> list[str]:
    """Return the fields of a config class that no family of adaptc's follows, where a file sets one."""
    every = _CAPTURED | _WITHOUT_EFFECT | _ACCEPTED.keys()
    return sorted(
        field.name for field in dataclasses.fields(config) if field.name in values and field.name not in every
    )


def _own_keys(model_type: str) -> frozenset[str]:
    """The keys that a family has beside those of all."""
    family = family_of(model_type)
    return family.keys | family.accepted.keys() if isinstance(family, DecoderFamily | EncoderFamily) else frozenset()


def _parts(values: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A config and its language model's, each with the place of its keys."""
    yield "", values
    text = values.get("text_config")
    if isinstance(text, dict):
        yield "text_config.", text

"""From a GGUF file's metadata to the transformers config of its model."""

from __future__ import annotations

import dataclasses
from typing import Any

from adaptc.errors import LoadError
from adaptc.families.base import DecoderFamily, GgufLayout
from adaptc.families.table import gguf_family, supported_gguf
from adaptc.sources.gguf.file import GgufFile
from adaptc.sources.gguf.keys import refuse_keys
from adaptc.sources.gguf.rope import rope_parameters


def family_and_layout(file: GgufFile) -> tuple[DecoderFamily, GgufLayout]:
    """Return the file's family and how GGUF files hold it.

    Raises:
        LoadError: the file states an architecture adaptc does not capture; the message names those it does.
    """
    name = file.need("general.architecture", str)
    experts = file.get(f"{name}.expert_count", int, 0)
    family = gguf_family(name, experts=experts > 0)
    if family is None or family.gguf is None:
        what = f"{name!r} with {experts} experts" if experts else repr(name)
        what += " without experts" if not experts and gguf_family(name, experts=True) is not None else ""
        known = ", ".join(supported_gguf())
        raise LoadError(f"{file.path}: architecture {what} is not supported; supported: {known}")
    return family, family.gguf


def config_values(file: GgufFile) -> dict[str, Any]:
    """Return the keyword arguments of the transformers config that the file describes.

    Raises:
        LoadError: a value is missing, of the wrong type, or asks for something not supported.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    family, layout = family_and_layout(file)
    prefix = layout.architecture
    refuse_keys(file, prefix, layout.keys)
    heads = _same_in_all_layers(file, f"{prefix}.attention.head_count")
    width = file.need(f"{prefix}.embedding_length", int)
    kv_key = f"{prefix}.attention.head_count_kv"
    head_dim = _head_dim(file, prefix, width // heads if heads else 0)
    plain = layout.epsilon == "rms_norm_eps"
    values: dict[str, Any] = {
        "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family.model_type]],
        "vocab_size": len(file.need("tokenizer.ggml.tokens", list)),
        "hidden_size": width,
        "intermediate_size": _same_in_all_layers(file, f"{prefix}.feed_forward_length"),
        "num_hidden_layers": file.need(f"{prefix}.block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": _same_in_all_layers(file, kv_key) if kv_key in file.metadata else heads,
        "head_dim": head_dim,
        "max_position_embeddings": file.need(f"{prefix}.context_length", int),
        layout.epsilon: file.need(f"{prefix}.attention.layer_norm_{'rms_' if plain else ''}epsilon", float),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.get("tokenizer.ggml.bos_token_id", int),
        "eos_token_id": file.get("tokenizer.ggml.eos_token_id", int),
        "pad_token_id": None,  # config classes have defaults that the file's vocabulary may lack
    }
    part = _rotary_part(file, layout, head_dim)
    if not family.names.positions:
        values["rope_parameters"] = rope_parameters(file, layout, values, part)
    found = values | layout.config(file, values)
    fields = {field.name for field in dataclasses.fields(CONFIG_MAPPING[family.model_type])}
    if "head_dim" not in fields and head_dim * heads == width:
        del found["head_dim"]  # which the class may work out, and refuse to be told
    return found


def _rotary_part(file: GgufFile, layout: GgufLayout, width: int) -> int:
    """How many numbers of a head RoPE turns."""
    key = f"{layout.architecture}.rope.dimension_count"
    part: int = file.get(key, int, width)
    if part != width and not layout.partial_rotary:
        raise LoadError(
            f"{file.path}: {key} is {part} and heads are {width} wide; only heads whose keys, values and RoPE are of "
            "one width are supported"
        )
    if not 0 < part <= width or part % 2:
        raise LoadError(f"{file.path}: {key} is {part}; an even number from 2 to {width} is right")
    return part


def _same_in_all_layers(file: GgufFile, key: str) -> int:
    """A number that a file may state for each layer; adaptc takes layers that are alike."""
    value = file.metadata.get(key)
    if not isinstance(value, list):
        number: int = file.need(key, int)
        return number
    if len(set(value)) != 1 or not isinstance(value[0], int):
        shown = ", ".join(map(str, value[:6])) + (", …" if len(value) > 6 else "")
        raise LoadError(f"{file.path}: {key} is {shown}; layers that are not alike are not supported")
    return value[0]


def _head_dim(file: GgufFile, prefix: str, usual: int) -> int:
    """The width of a head, which keys and values share in all families that adaptc captures."""
    name, key = (f"{prefix}.attention.{part}_length" for part in ("key", "value"))
    width: int = file.get(name, int, usual)
    other = file.get(key, int, usual)
    if other != width:
        raise LoadError(
            f"{file.path}: {key} is {other} and {name} is {width}; only heads whose keys, values and RoPE are of one "
            "width are supported"
        )
    return width

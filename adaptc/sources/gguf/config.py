"""From a GGUF file's metadata to the transformers config of its model."""

from __future__ import annotations

from typing import Any

from adaptc.errors import LoadError
from adaptc.families.base import DecoderFamily, GgufLayout
from adaptc.families.table import gguf_family, supported_gguf
from adaptc.sources.gguf.file import GgufFile
from adaptc.sources.gguf.rope import rope_parameters


def family_and_layout(file: GgufFile) -> tuple[DecoderFamily, GgufLayout]:
    """Return the file's family and how GGUF files hold it.

    Raises:
        LoadError: the file states an architecture adaptc does not capture; the message names those it does.
    """
    name = file.need("general.architecture", str)
    experts = file.get(f"{name}.expert_count", int, 0)
    family = gguf_family(name)
    if family is None or family.gguf is None or experts:
        what = f"{name!r} with {experts} experts" if experts else repr(name)
        known = ", ".join(supported_gguf())
        raise LoadError(f"{file.path}: architecture {what} is not supported; supported: {known}")
    return family, family.gguf


def config_values(file: GgufFile) -> dict[str, Any]:
    """Return the keyword arguments of the transformers config that the file describes.

    Raises:
        LoadError: a value is missing, of the wrong type, or asks for something not supported.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    family, layout = family_and_layout(file)
    prefix = layout.architecture
    heads = file.need(f"{prefix}.attention.head_count", int)
    width = file.need(f"{prefix}.embedding_length", int)
    values: dict[str, Any] = {
        "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family.model_type]],
        "vocab_size": file.get(f"{prefix}.vocab_size", int) or len(file.need("tokenizer.ggml.tokens", list)),
        "hidden_size": width,
        "intermediate_size": file.need(f"{prefix}.feed_forward_length", int),
        "num_hidden_layers": file.need(f"{prefix}.block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": file.get(f"{prefix}.attention.head_count_kv", int, heads),
        "head_dim": file.get(f"{prefix}.attention.key_length", int) or (width // heads if heads else 0),
        "max_position_embeddings": file.need(f"{prefix}.context_length", int),
        "rms_norm_eps": file.need(f"{prefix}.attention.layer_norm_rms_epsilon", float),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.get("tokenizer.ggml.bos_token_id", int),
        "eos_token_id": file.get("tokenizer.ggml.eos_token_id", int),
        "pad_token_id": file.get("tokenizer.ggml.padding_token_id", int),
        "rope_parameters": rope_parameters(file, prefix),
    }
    return values | layout.config(file, values)

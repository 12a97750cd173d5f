"""What a GGUF file's metadata says about its model, in transformers' words: config and parameters.

The file keeps llama.cpp's names and conventions. Undone here: rotary weights of Llama stored with
their rows interleaved, Gemma norms stored as weight + 1, RoPE factors stored as a tensor.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from adaptc.errors import LoadError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from adaptc.sources.gguf.file import GgufFile, GgufTensor

    Array = npt.NDArray[np.float32]

# general.architecture -> transformers model_type. Mistral's files say llama: the arithmetic is the same.
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Gemma 2 and 3 have norms on both sides of each block, so ffn_norm is another one there.
_INNER_FOUR_NORMS = _INNER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_ROPE_FACTORS = "rope_freqs.weight"
# What Llama 3.1 and later were trained with; the file keeps only the factors that follow from it.
_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def architecture(file: GgufFile) -> str:
    """Return the model's transformers `model_type`.

    Raises:
        LoadError: an architecture adaptc does not capture; the message names those it does.
    """
    name = file.need("general.architecture", str)
    experts = file.get(f"{name}.expert_count", int, 0)
    if name not in ARCHITECTURES or experts:
        what = f"{name!r} with {experts} experts" if experts else repr(name)
        raise LoadError(f"{file.path}: architecture {what} is not supported; supported: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def config_values(file: GgufFile) -> dict[str, Any]:
    """Return the keyword arguments of the transformers config the file describes.

    Raises:
        LoadError: a value is missing, of the wrong type, or asks for something not supported.
    """
    model_type = architecture(file)
    prefix = file.need("general.architecture", str)
    heads = file.need(f"{prefix}.attention.head_count", int)
    width = file.need(f"{prefix}.embedding_length", int)
    values: dict[str, Any] = {
        "architectures": [_CLASSES[model_type]],
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
    }
    rope = _rope(file, prefix)
    if model_type == "llama":
        values["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        values["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
    if model_type in ("gemma2", "gemma3_text"):
        values |= _gemma(file, prefix, model_type, values)
    if model_type == "gemma3_text":
        # The sliding layers have a frequency of their own, which the file does not carry.
        values["rope_parameters"] = {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        }
    else:
        values["rope_parameters"] = rope
    return values


def _gemma(file: GgufFile, prefix: str, model_type: str, values: dict[str, Any]) -> dict[str, Any]:
    # Only the 27B models scale queries by width / heads instead of head_dim, and the file does not say so;
    # llama.cpp tells them by their number of layers too (src/models/gemma2.cpp, gemma3.cpp).
    largest = values["num_hidden_layers"] == {"gemma2": 46, "gemma3_text": 62}[model_type]
    scalar = values["hidden_size"] // values["num_attention_heads"] if largest else values["head_dim"]
    extra: dict[str, Any] = {
        "query_pre_attn_scalar": scalar,
        "sliding_window": file.need(f"{prefix}.attention.sliding_window", int),
    }
    if model_type == "gemma2":
        extra["attn_logit_softcapping"] = file.get(f"{prefix}.attn_logit_softcapping", float, 50.0)
        extra["final_logit_softcapping"] = file.get(f"{prefix}.final_logit_softcapping", float, 30.0)
    return extra


def _rope(file: GgufFile, prefix: str) -> dict[str, Any]:
    # 10,000 is what llama.cpp takes where the file is silent.
    theta = file.get(f"{prefix}.rope.freq_base", float, 10000.0)
    # Files from before there were kinds have `scale_linear` alone.
    old = file.get(f"{prefix}.rope.scale_linear", float, 1.0)
    kind = file.get(f"{prefix}.rope.scaling.type", str, "none" if old == 1.0 else "linear")
    factor = file.get(f"{prefix}.rope.scaling.factor", float, old)
    if _ROPE_FACTORS in file.tensors:
        return {"rope_type": "llama3", "rope_theta": theta} | _llama3(file, theta)
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return {"rope_type": "default", "rope_theta": theta}
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    if kind == "yarn":
        original = file.need(f"{prefix}.rope.scaling.original_context_length", int)
        yarn = {"factor": factor, "original_max_position_embeddings": original}
        return {"rope_type": "yarn", "rope_theta": theta} | yarn
    raise LoadError(f"{file.path}: RoPE scaling {kind!r} is not supported; supported: none, linear, yarn, llama3")


def _llama3(file: GgufFile, theta: float) -> dict[str, Any]:
    """Recover Llama 3's four RoPE numbers from the factors that llama.cpp works out from them."""
    import numpy as np

    stored = file.read(file.tensors[_ROPE_FACTORS]).ravel()
    wavelength = 2 * np.pi * theta ** (np.arange(stored.size) / stored.size)
    factor = float(stored.max())
    low = _LLAMA3_ROPE["original_max_position_embeddings"] / _LLAMA3_ROPE["low_freq_factor"]
    high = _LLAMA3_ROPE["original_max_position_embeddings"] / _LLAMA3_ROPE["high_freq_factor"]
    share = (low / wavelength - 1) / (low / high - 1)
    smooth = 1 / ((1 - share) / factor + share)
    expected = np.where(wavelength < high, 1.0, np.where(wavelength > low, factor, smooth))
    if not np.allclose(stored, expected, rtol=1e-3):
        raise LoadError(f"{file.path}: {_ROPE_FACTORS} does not follow Llama 3's rule; no other is supported")
    return {"factor": factor, **_LLAMA3_ROPE}


def parameter_names(file: GgufFile) -> dict[str, GgufTensor]:
    """Return the file's tensors by the parameter names of the transformers model.

    Raises:
        LoadError: a tensor with no place in the model.
    """
    model_type = architecture(file)
    inner = _INNER_FOUR_NORMS if model_type in ("gemma2", "gemma3_text") else _INNER
    named = {}
    for name, tensor in file.tensors.items():
        if name == _ROPE_FACTORS:  # goes into the config
            continue
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        outer = re.fullmatch(r"(\w+)\.(weight|bias)", name)
        if layer and layer[2] in inner:
            named[f"model.layers.{layer[1]}.{inner[layer[2]]}.{layer[3]}"] = tensor
        elif outer and outer[1] in _OUTER:
            named[f"{_OUTER[outer[1]]}.{outer[2]}"] = tensor
        else:
            raise LoadError(f"{file.path}: tensor {name} has no place in a {model_type} model")
    return named


def parameter(file: GgufFile, tensor: GgufTensor, heads: int, kv_heads: int) -> Array:
    """Read one tensor in transformers' layout.

    Args:
        file: The file it stands in.
        tensor: One of its tensors.
        heads: Number of query heads.
        kv_heads: Number of key and value heads.

    Returns:
        float32, of the shape of the transformers parameter.
    """
    values = file.read(tensor)
    kind = architecture(file)
    if kind == "llama" and (".attn_q." in tensor.name or ".attn_k." in tensor.name):
        groups = heads if ".attn_q." in tensor.name else kv_heads
        # llama.cpp rotates neighbouring rows, transformers row i with row i + half.
        pairs = values.reshape(groups, values.shape[0] // groups // 2, 2, *values.shape[1:])
        rotated: Array = pairs.swapaxes(1, 2).reshape(values.shape)
        return rotated
    if kind.startswith("gemma") and tensor.name.endswith("norm.weight"):
        one: Array = values - 1
        return one
    return values

"""Small GGUF files: tiny models as llama.cpp's converter writes them, with vocabularies of every kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.models.tiny import random_model

F32 = gguf.GGMLQuantizationType.F32

_OUTSIDE = {
    **dict.fromkeys(
        ("model.embed_tokens", "transformer.wte", "transformer.word_embeddings", "gpt_neox.embed_in"), "token_embd"
    ),
    **dict.fromkeys(("model.norm", "transformer.ln_f", "gpt_neox.final_layer_norm"), "output_norm"),
    "transformer.wpe": "position_embd",
    "lm_head": "output",
}
_TWO_NORMS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.router": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "feed_forward.router": "ffn_gate_inp",
    **{f"feed_forward.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
    **{f"feed_forward.shared_expert.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")},
}
_FOUR_NORMS = {
    **_TWO_NORMS,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_JOINED = {
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
    "ln_mlp": "attn_norm",
    "ln_attn": "attn_norm_2",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
}
_FOUR = ("gemma2", "gemma3", "olmo2")
_TURNED_BY_NEIGHBOURS = ("llama", "granite", "granitemoe", "smollm3")
"""Architectures of Llama's code, for which the converter moves rows of queries and keys."""


@dataclass(frozen=True)
class Tokens:
    """A vocabulary in a GGUF file's terms.

    Attributes:
        model: `llama` or `gpt2`.
        pre: How a byte-level vocabulary splits text.
        texts: Texts by id.
        kinds: Kinds by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte.
        merges: "a b", best first; None for no such key.
        scores: Scores by id; None for no such key.
        more: Other keys below `tokenizer.`, by what follows it.
    """

    model: str
    pre: str
    texts: Sequence[str]
    kinds: Sequence[int]
    merges: Sequence[str] | None = None
    scores: Sequence[float] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def keys(self) -> dict[str, Any]:
        """The metadata, without what is None."""
        found = {
            "ggml.model": self.model,
            "ggml.pre": self.pre or None,
            "ggml.tokens": list(self.texts),
            "ggml.token_type": list(self.kinds),
            "ggml.merges": None if self.merges is None else list(self.merges),
            "ggml.scores": None if self.scores is None else list(self.scores),
            **self.more,
        }
        return {f"tokenizer.{name}": value for name, value in found.items() if value is not None}


def write(
    path: Path,
    model: Any,
    architecture: str,
    tokens: Tokens,
    keys: Mapping[str, Any] | None = None,
    kind: Any = F32,
    without: Collection[str] = (),
    more: Callable[[Any], None] = lambda _: None,
) -> Path:
    """Write a model and a vocabulary.

    Args:
        path: The file.
        model: A model of transformers, of a family that adaptc reads from GGUF files.
        architecture: The file's `general.architecture`.
        tokens: The vocabulary.
        keys: Metadata that replaces what the model says, or adds to it; None leaves a key out.
        kind: The ggml type of matrices.
        without: Tensors to leave out, by GGUF name.
        more: Is called with the writer, to add tensors.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in {**_described(model.config, architecture), **tokens.keys(), **(keys or {})}.items():
        if value is not None:
            _put(writer, name, value)
    for name, values in tensors(model, architecture).items():
        if name not in without:
            how = kind if values.ndim > 1 and "ffn_gate_inp" not in name else F32
            writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(values), how), raw_dtype=how)
    more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _described(config: Any, architecture: str) -> dict[str, Any]:
    rope = getattr(config, "rope_parameters", None) or {}
    turned = rope.get("full_attention") or rope
    heads, width = config.num_attention_heads, config.hidden_size
    head_dim = getattr(config, "head_dim", None) or width // heads
    found = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": next(value for name in _INNER if (value := getattr(config, name, None)) is not None),
        "attention.head_count": heads,
        "attention.head_count_kv": _kv_heads(config),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "attention.layer_norm_epsilon": getattr(config, "layer_norm_eps", getattr(config, "layer_norm_epsilon", None)),
        "attention.sliding_window": getattr(config, "sliding_window", None),
        "rope.dimension_count": int(turned.get("partial_rotary_factor", 1.0) * head_dim) if rope else None,
        "rope.freq_base": float(turned["rope_theta"]) if rope else None,
        "rope.scaling.original_context_length": _long(rope, "original_max_position_embeddings"),
        "rope.scaling.attn_factor": _long(rope, "attention_factor"),
        "embedding_scale": getattr(config, "embedding_multiplier", None),
        "residual_scale": getattr(config, "residual_multiplier", None),
        "attention.scale": getattr(config, "attention_multiplier", None),
        "logit_scale": getattr(config, "logits_scaling", getattr(config, "logit_scale", None)),
        "use_parallel_residual": getattr(config, "use_parallel_residual", None),
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "expert_count": getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None),
        "expert_used_count": getattr(config, "num_experts_per_tok", None),
        "expert_feed_forward_length": getattr(config, "moe_intermediate_size", None)
        or (config.intermediate_size if hasattr(config, "intermediate_size_mlp") else None),
        "interleave_moe_layer_step": getattr(config, "interleave_moe_layer_step", None),
        "expert_shared_feed_forward_length": getattr(config, "shared_expert_intermediate_size", None),
    }
    return {f"{architecture}.{name}": value for name, value in found.items() if value is not None}


_INNER = ("intermediate_size_mlp", "n_inner", "ffn_hidden_size", "intermediate_size")


def _long(rope: Mapping[str, Any], name: str) -> Any:
    return rope.get(name) if rope.get("rope_type") == "longrope" else None


def _kv_heads(config: Any) -> int:
    if config.model_type in ("gpt2", "gpt_neox"):
        return int(config.num_attention_heads)
    if config.model_type != "falcon":
        return int(config.num_key_value_heads)
    if config.new_decoder_architecture:
        return int(config.num_kv_heads)
    return 1 if config.multi_query else int(config.num_attention_heads)


def _put(writer: Any, name: str, value: Any) -> None:
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    if isinstance(value, list):
        writer.add_array(name, value)
    else:
        adders[type(value)](name, value)


def tensors(model: Any, architecture: str) -> dict[str, Any]:
    """A model's weights as llama.cpp's converter writes them, float32 by their names in the file."""
    config = model.config
    found: dict[str, Any] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        if architecture in _TURNED_BY_NEIGHBOURS and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        if architecture.startswith("gemma") and "norm" in name:
            values = values + 1
        if ".experts." in name:
            values = values.swapaxes(1, 2) if architecture == "llama4" else values
            found |= _experts(name, values)
            continue
        if name.endswith("shared_expert_gate.weight"):
            values = values[0]
        if architecture == "gpt2" and ".c_" in name and name.endswith(".weight"):
            values = values.T
        if ".query_key_value." in name:
            values = _apart(values, config.num_attention_heads, _kv_heads(config))
        if ".norms." in name:
            stem, row, end = name.replace(".norms.", " ").replace(".weight", " weight").split()
            rows = found.setdefault(_name(f"{stem}.{end}", architecture), [])
            assert len(rows) == int(row)
            rows.append(values)
            continue
        found[_name(name, architecture)] = values
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        found |= {f"rope_factors_{kind}.weight": rope[f"{kind}_factor"] for kind in ("long", "short")}
    return {name: np.asarray(values, np.float32) for name, values in found.items()}


def _apart(values: Any, heads: int, kv_heads: int) -> Any:
    """Queries, keys and values one after the other, as llama.cpp's converter puts them."""
    groups = values.reshape(kv_heads, heads // kv_heads + 2, -1, *values.shape[1:])
    parts = groups[:, :-2], groups[:, -2], groups[:, -1]
    return np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])


def _experts(name: str, values: Any) -> dict[str, Any]:
    layer = name.split(".")[2]
    if name.endswith("down_proj"):
        return {f"blk.{layer}.ffn_down_exps.weight": values}
    gate, up = np.split(values, 2, axis=1)
    return {f"blk.{layer}.ffn_gate_exps.weight": gate, f"blk.{layer}.ffn_up_exps.weight": up}


def _name(name: str, architecture: str) -> str:
    stem, _, end = name.rpartition(".")
    if stem.startswith(("model.layers.", "transformer.h.", "gpt_neox.layers.")):
        _, _, layer, inner = stem.split(".", 3)
        names = _JOINED | (_FOUR_NORMS if architecture in _FOUR else _TWO_NORMS)
        return f"blk.{layer}.{names[inner]}.{end}"
    return f"{_OUTSIDE[stem]}.{end}"


def tiny_model(model_type: str, vocabulary: int, spread: float = 0.15, **options: Any) -> Any:
    """A random model with a vocabulary of this size."""
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": model_type.startswith("gemma"),
    }
    return random_model(model_type, {**sizes, **options}, spread)

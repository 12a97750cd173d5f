"""What GGUF files of several families share: names of a layer's tensors, and conventions to undo.

The conventions are those of llama.cpp's conversion script.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from adaptc.errors import LoadError
from adaptc.families.base import GgufHeader, attention_bias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

TWO_NORMS: Mapping[str, str] = MappingProxyType(
    {
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
)
"""Names within a layer that has a norm before attention and one before the feed-forward block."""

FOUR_NORMS: Mapping[str, str] = MappingProxyType(
    {
        **TWO_NORMS,
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
)
"""Names within a layer that has norms on both sides of each block; `ffn_norm` is another one there."""


ROUTED: Mapping[str, str] = MappingProxyType(
    {**{name: path for name, path in TWO_NORMS.items() if not path.startswith("mlp.")}, "ffn_gate_inp": "mlp.gate"}
)
"""Names within a layer of two norms whose feed-forward block is a router and experts."""


def expert_names(block: str = "mlp") -> Mapping[str, tuple[str, ...]]:
    """Return the tensors that hold the experts at this path within a layer: see `GgufLayout.experts`."""
    parts = {"gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"), "down_proj": ("ffn_down_exps",)}
    return MappingProxyType({f"{block}.experts.{parameter}": names for parameter, names in parts.items()})


EXPERT_KEYS = frozenset({"expert_count", "expert_used_count"})
"""What `routing` reads, and its callers."""


def routing(file: GgufHeader, architecture: str) -> tuple[int, int]:
    """Return how many experts a block has, and to how many of them a token goes.

    llama.cpp takes the largest of a softmax over all experts for every family here; what a file says otherwise is
    refused.

    Raises:
        LoadError: a number is missing or out of range, or the file asks for another way to route.
    """
    experts, used = (file.need(f"{architecture}.{key}", int) for key in ("expert_count", "expert_used_count"))
    if not 1 <= used <= experts:
        raise LoadError(f"{file.path}: {used} of {experts} experts for a token; from 1 to all of them is right")
    for key, kind, neutral in (
        ("expert_weights_scale", float, (0.0, 1.0)),
        ("expert_gating_func", int, (0, 1)),
        ("leading_dense_block_count", int, (0,)),
        ("expert_group_used_count", int, (0, 1)),
    ):
        value = file.get(f"{architecture}.{key}", kind, neutral[0])
        if value not in neutral:
            right = " or ".join(map(str, neutral))
            raise LoadError(f"{file.path}: {architecture}.{key} is {value}, which is not supported; {right} is")
    return experts, used


GRANITE_SCALES = ("embedding_scale", "residual_scale", "attention.scale")
"""What `granite_multipliers` reads."""


def granite_multipliers(file: GgufHeader, architecture: str, head_dim: int) -> dict[str, float]:
    """Return what Granite's models multiply embeddings, blocks' results and attention's scores by."""
    embedding, residual, attention = (file.get(f"{architecture}.{key}", float, 0.0) for key in GRANITE_SCALES)
    return {
        # 0 stands for no scaling, and attention for its usual one, as in llama.cpp.
        "embedding_multiplier": embedding or 1.0,
        "residual_multiplier": residual or 1.0,
        "attention_multiplier": attention or head_dim**-0.5,
    }


def one_expert_width(file: GgufHeader, architecture: str, whole: int, used: int) -> int:
    """Return the inner neurons of an expert; where the file does not say, those of a block among the chosen ones."""
    width: int = file.get(f"{architecture}.expert_feed_forward_length", int, 0) or whole // used
    return width


PARALLEL: Mapping[str, str] = MappingProxyType({name: path for name, path in TWO_NORMS.items() if name != "ffn_norm"})
"""Names within a layer whose two blocks read one norm."""


def rotary_weight(name: str, values: Array, heads: int, kv_heads: int) -> Array:
    """Undo what llama.cpp's converter does to the rotary weights of Llama, and of families made from it."""
    if ".attn_q." in name:
        return halves_from_pairs(values, heads)
    if ".attn_k." in name:
        return halves_from_pairs(values, kv_heads)
    return values


def halves_from_pairs(values: Array, heads: int) -> Array:
    """Undo the interleaving of rotary weights: llama.cpp rotates neighbouring rows, transformers row i and i + half.

    Args:
        values: float32 [heads * head_dim, ...], a weight or a bias.
        heads: How many heads the rows are of.
    """
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    halves: Array = pairs.swapaxes(1, 2).reshape(values.shape)
    return halves


def norms_minus_one(name: str, values: Array, heads: int, kv_heads: int) -> Array:
    """Undo the shift of norm weights: llama.cpp stores weight + 1 for models that scale by 1 + weight."""
    shifted: Array = values - 1 if name.endswith("norm.weight") else values
    return shifted


WINDOW_KEYS = frozenset({"attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa"})
"""What `sliding_window` reads, and its callers."""


def sliding_window(
    file: GgufHeader, architecture: str, values: Mapping[str, Any], deepest: int, window: int, period: int
) -> dict[str, Any]:
    """Return the config values of a family with sliding layers: window, kinds of layers, scale of queries, biases.

    Args:
        file: The header.
        architecture: Its `general.architecture`.
        values: The config values that every family has.
        deepest: Number of layers of the family's largest model. Only that one scales queries by width / heads instead
            of head_dim, which the file does not state; llama.cpp tells it by its depth too (src/models/gemma2.cpp).
        window: The window where the file states none; 0 for attention over the whole text.
        period: One layer of so many attends to the whole text, where the file does not say which.

    Raises:
        LoadError: a value is of the wrong type.
    """
    largest = values["num_hidden_layers"] == deepest
    scalar = values["hidden_size"] // values["num_attention_heads"] if largest else values["head_dim"]
    window = file.get(f"{architecture}.attention.sliding_window", int, window)
    slides = sliding_layers(file, architecture, values["num_hidden_layers"], period) if window else []
    kinds = ["sliding_attention" if sliding else "full_attention" for sliding in slides]
    return {
        **attention_bias(file, values),
        "query_pre_attn_scalar": scalar,
        "sliding_window": window or values["max_position_embeddings"],
        "layer_types": kinds or ["full_attention"] * values["num_hidden_layers"],
    }


def sliding_layers(file: GgufHeader, architecture: str, layers: int, period: int) -> list[bool]:
    """Which layers slide, by the file's list or its period."""
    key = f"{architecture}.attention.sliding_window_pattern"
    stated = file.get(key, object)
    if isinstance(stated, list):
        if len(stated) < layers or not all(each in (0, 1) for each in stated):
            raise LoadError(f"{file.path}: {key} does not say of each of {layers} layers whether it slides")
        return [bool(each) for each in stated[:layers]]
    period = file.get(key, int, period)
    return [period == 0 or layer % period < period - 1 for layer in range(layers)]


def softcap(file: GgufHeader, architecture: str, name: str, usual: float | None) -> float | None:
    """Return a cap of logits, `usual` where the file states none.

    Raises:
        LoadError: it is no positive number.
    """
    key = f"{architecture}.{name}"
    cap: float | None = file.get(key, float, usual)
    if cap == 0.0 and usual is None:
        return None
    if cap is not None and not cap > 0:
        raise LoadError(f"{file.path}: {key} is {cap}; a positive number is right")
    return cap

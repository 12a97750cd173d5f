"""What the keys under an architecture's name ask for: read, without effect, refused, or not known.

A key that would make another model is refused, also where llama.cpp does not look at it: the model was trained with
it. A key that nobody knows is a remark and no refusal: llama.cpp does not look at it either, and most new keys describe
a model without changing it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from adaptc.errors import LoadError
from adaptc.sources.gguf.file import GgufFile

_READ = frozenset(
    [
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.attn_factor",
        "rope.scaling.original_context_length",
    ]
)
"""What every family reads."""

_NO_EFFECT = frozenset(
    [
        "vocab_size",
        "tensor_data_layout",
        "rope.scaling.finetuned",
        "rope.scaling.alpha",
        "pooling_type",
        "classifier.pooling_type",
        "classifier.output_labels",
        "attention.layer_norm_epsilon",
        "attention.group_norm_epsilon",
        "attention.group_norm_groups",
        "expert_used_count",
        "expert_feed_forward_length",
        "expert_shared_feed_forward_length",
        "expert_weights_scale",
        "expert_weights_norm",
        "expert_gating_func",
        "expert_group_used_count",
        "leading_dense_block_count",
        "dense_2_feat_in",
        "dense_2_feat_out",
        "dense_3_feat_in",
        "dense_3_feat_out",
    ]
)
"""Names of the file's parts, and settings of parts that a model of these families has not."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "attention.causal": (True,),
        "attention.scale": (0.0,),
        "attention.output_scale": (0.0, 1.0),
        "attention.value_scale": (0.0, 1.0),
        "attention.clamp_kqv": (0.0,),
        "attention.max_alibi_bias": (0.0,),
        "attention.temperature_length": (0,),
        "attention.temperature_scale": (0.0, 1.0),
        "attn_logit_softcapping": (0.0,),
        "final_logit_softcapping": (0.0,),
        "router_logit_softcapping": (0.0,),
        "logit_scale": (0.0, 1.0),
        "residual_scale": (0.0, 1.0),
        "embedding_scale": (0.0, 1.0),
        "expert_count": (0,),
        "expert_shared_count": (0,),
        "expert_group_count": (0,),
        "nextn_predict_layers": (0,),
        "full_attention_interval": (0, 1),
        "num_loops": (0, 1),
        "use_parallel_residual": (False,),
        "swin_norm": (False,),
        "rope.scaling.yarn_ext_factor": (1.0,),
        "rope.scaling.yarn_attn_factor": (1.0,),
        "rope.scaling.yarn_beta_fast": (32.0,),
        "rope.scaling.yarn_beta_slow": (1.0,),
        "rope.scaling.yarn_log_multiplier": (0.0,),
    }
)
"""Keys that change what a model computes, with the values that change nothing; only these are taken."""

_OF_SLIDING_LAYERS = ("attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa")
_WINDOW = "attention.sliding_window"
_PATTERN = "attention.sliding_window_pattern"


def refuse_keys(file: GgufFile, architecture: str, also: Iterable[str]) -> None:
    """Refuse a file with a key that makes another model of it.

    Args:
        file: The header.
        architecture: Its `general.architecture`.
        also: Keys, without the architecture's name, that its family reads beside those that all read.

    Raises:
        LoadError: there is one.
    """
    for key, values in _NEUTRAL.items():
        name = f"{architecture}.{key}"
        value = file.metadata.get(name)
        if key not in also and value is not None and value not in values:
            right = " or ".join(str(each) for each in values)
            raise LoadError(f"{file.path}: {name} is {value}, which is not supported; {right} is, and no such key")
    for key in _OF_SLIDING_LAYERS:
        usual, sliding = (file.metadata.get(f"{architecture}.{each}") for each in (key.removesuffix("_swa"), key))
        if sliding not in (None, usual):
            raise LoadError(f"{file.path}: {architecture}.{key} is {sliding}; heads of one width are supported")


def remarks_on_keys(file: GgufFile, architecture: str, also: Iterable[str]) -> tuple[str, ...]:
    """Return a remark on keys that nobody knows, and one on a window that llama.cpp has not either.

    Args:
        file: The header.
        architecture: Its `general.architecture`.
        also: As for `refuse_keys`.
    """
    prefix = f"{architecture}."
    stated = [name.removeprefix(prefix) for name in file.metadata if name.startswith(prefix)]
    known = {*_READ, *_NO_EFFECT, *_NEUTRAL, *also, *_OF_SLIDING_LAYERS, _WINDOW, _PATTERN}
    found = []
    if unknown := sorted(set(stated) - known):
        names = ", ".join(prefix + key for key in unknown)
        found.append(f"keys that adaptc does not know are not read: {names}; check that they change nothing")
    window = file.metadata.get(prefix + _WINDOW)
    if _WINDOW in stated and _WINDOW not in also and window:
        found.append(f"{prefix}{_WINDOW} is {window}, and attention is over the whole text, as in llama.cpp")
    return tuple(found)

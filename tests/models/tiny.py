"""Tiny random models of every supported family: real architectures, milliseconds to run, nothing to download."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from adaptc.capture.text import capture
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.onnx_graph import OnnxGraph, sizes
from adaptc.ir.program import Program
from adaptc.passes.emit import FLOAT
from adaptc.runtime.bundle.plan import Run

VOCAB = 61
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.4, 2.0],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 64,
}
"""LongRoPE for heads of 8; its short factors, as tests have caches of 64 tokens."""
PHI3: dict[str, Any] = {"pad_token_id": 0, "head_dim": 8}
NEOX: dict[str, Any] = {"head_dim": 8, "use_parallel_residual": False, "attention_bias": False, "rotary_pct": 0.5}


GRANITE: dict[str, Any] = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.7,
    "logits_scaling": 2.5,
}
LLAMA4: dict[str, Any] = {
    "num_local_experts": 4,
    "intermediate_size": 32,
    "intermediate_size_mlp": 48,
    "no_rope_layer_interval": 3,
    "attention_chunk_size": 5,
    "floor_scale": 4,
}
"""Chunks, and attention that grows hotter, within the texts of tests."""
STABLELM: dict[str, Any] = {"hidden_size": 64, "use_qkv_bias": True, "qk_layernorm": True}
FALCON: dict[str, Any] = {"head_dim": None, "ffn_hidden_size": 64}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-rope3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "llama-yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "llama-mha": ("llama", {"num_key_value_heads": 4}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "gemma": ("gemma", {"tie_word_embeddings": True}),
    "gemma2": ("gemma2", {"tie_word_embeddings": True, "sliding_window": 5, "query_pre_attn_scalar": 16}),
    "gemma3": (
        "gemma3_text",
        {"tie_word_embeddings": True, "sliding_window": 5, "num_hidden_layers": 7, "query_pre_attn_scalar": 16},
    ),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2-moe": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 48}),
    "qwen3-moe": ("qwen3_moe", {**EXPERTS, "norm_topk_prob": True}),
    "granite-moe": (
        "granitemoe",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.2,
            "logits_scaling": 2.0,
        },
    ),
    "llama4": ("llama4_text", LLAMA4),
    "llama4-interleaved": (
        "llama4_text",
        LLAMA4 | {"interleave_moe_layer_step": 2, "num_hidden_layers": 5, "use_qk_norm": False, "floor_scale": 3},
    ),
    "olmoe": ("olmoe", {**EXPERTS, "head_dim": 8, "eos_token_id": None, "norm_topk_prob": True}),
    "phi3": ("phi3", {"pad_token_id": 0}),
    "phi3-partial": ("phi3", PHI3 | {"partial_rotary_factor": 0.5, "sliding_window": 5}),
    "phi3-long": (
        "phi3",
        {"pad_token_id": 0, "head_dim": 8, "original_max_position_embeddings": 32, "rope_parameters": LONG},
    ),
    "olmo2": ("olmo2", {"pad_token_id": None}),
    "granite": ("granite", GRANITE),
    "smollm3": ("smollm3", {"pad_token_id": None, "no_rope_layer_interval": 2}),
    "stablelm": ("stablelm", {"hidden_size": 64, "partial_rotary_factor": 0.25}),
    "stablelm-parallel": ("stablelm", STABLELM | {"use_parallel_residual": True}),
    "cohere": ("cohere", {"head_dim": 8, "logit_scale": 0.25, "tie_word_embeddings": True}),
    "cohere-norms": ("cohere", {"head_dim": 8, "use_qk_norm": True, "attention_bias": True}),
    "cohere2": ("cohere2", {"sliding_window": 5, "num_hidden_layers": 5, "tie_word_embeddings": True}),
    "gpt2": ("gpt2", {"tie_word_embeddings": True, "intermediate_size": None}),
    "gpt_neox": ("gpt_neox", {"hidden_act": "gelu", "hidden_size": 64}),
    "gpt_neox-serial": (
        "gpt_neox",
        {"head_dim": 8, "use_parallel_residual": False, "attention_bias": False, "rotary_pct": 0.5},
    ),
    "falcon": ("falcon", FALCON | {"tie_word_embeddings": True, "multi_query": True, "parallel_attn": True}),
    "falcon-new": ("falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-serial": ("falcon", FALCON | {"multi_query": False, "parallel_attn": False, "bias": True}),
}
"""By the names that tests call them: transformers' `model_type`, and what differs from `COMMON`."""
WITH_EXPERTS = tuple(
    name for name, (_, options) in FAMILIES.items() if {"num_experts", "num_local_experts"} & options.keys()
)
"""Those of `FAMILIES` whose feed-forward blocks are mixtures of experts."""
DENSE = tuple(name for name in FAMILIES if name not in WITH_EXPERTS)

FIRST = tuple(family for family in DENSE if family.startswith(("llama", "qwen", "mistral", "gemma")))
"""Families that every target and kind of weights is tried on; others become the same forms before these matter."""

OTHERWISE = ("phi3-partial", "smollm3", "cohere-norms", "gpt2", "gpt_neox", "falcon-new")
"""Families whose steps do something otherwise than the first ones' do."""

UNGATED = ("gpt2", "gpt_neox", "gpt_neox-serial", "falcon", "falcon-new", "falcon-serial")
"""Families whose feed-forward blocks are two matrices."""

WITH_GATES = tuple(family for family in FAMILIES if family not in (*UNGATED, "olmo2"))
"""Families whose blocks `skip_ffn` takes."""

_LAYER_NORMS = ("stablelm", "stablelm-parallel", "cohere", "cohere-norms", "cohere2")
ON_CPU_ONLY = (*UNGATED, *_LAYER_NORMS, "phi3-partial", "phi3-long")
"""Families that kernels of a GPU's step do not compute: layer norms, and heads that are filled up."""


def random_model(model_type: str, options: Mapping[str, Any], spread: float = 0.3, seed: int = 0) -> Any:
    """A language model with random weights, as transformers runs it.

    Args:
        model_type: transformers' name.
        options: All of its config; a `head_dim` of None is left out, as some classes work it out by themselves.
        spread: Standard deviation of the weights; larger than the usual start, so that differences show, and norms'
            weights are not all one.
        seed: Of the weights.
    """
    given = {key: value for key, value in options.items() if (key, value) != ("head_dim", None)}
    config = transformers.CONFIG_MAPPING[model_type](**given)
    torch.manual_seed(seed)
    built = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0.0, spread)
    return built


@cache
def model(family: str) -> Any:
    """The family's model with random weights, as transformers runs it."""
    model_type, options = FAMILIES[family]
    return random_model(model_type, {**COMMON, **options})


@cache
def fx(family: str) -> FxGraph:
    """The family's model as adaptc captures it."""
    built = model(family)
    return capture(built.config, dict(built.named_parameters(remove_duplicate=False)))


def program(family: str) -> Program:
    """A program of this one model."""
    return Program({"lm": fx(family)}, (Run("lm"),))


def feeds(batch: int = 2, tokens: int = 11, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Random token ids and their positions."""
    ids = np.random.default_rng(seed).integers(0, VOCAB, (batch, tokens))
    return {"input_ids": ids, "position_ids": np.tile(np.arange(tokens), (batch, 1))}


def eager(family: str, given: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """transformers' own logits, float32[batch, tokens, vocab]."""
    with torch.no_grad():
        logits = model(family)(torch.from_numpy(given["input_ids"]), use_cache=False).logits
    result: npt.NDArray[np.float32] = logits.float().numpy()
    return result


@cache
def lowered(family: str) -> Program:
    """The family's program after `lower`; passes fork it, so tests may share it."""
    from adaptc.passes import Pipeline
    from adaptc.passes.lower.lower import Lower

    return Pipeline((Lower(),)).run(program(family))


@cache
def cached(family: str, max_tokens: int = 64) -> Program:
    """The family's program after `lower`, `kv_cache` and `logits_from`."""
    from adaptc.passes import Pipeline
    from adaptc.passes.decoder.kv_cache import KvCache
    from adaptc.passes.decoder.logits_from import LogitsFrom

    return Pipeline((KvCache(max_tokens=max_tokens), LogitsFrom())).run(lowered(family))


def onnx(program: Program) -> OnnxGraph:
    """The one graph of a lowered program."""
    return program.graph("lm", OnnxGraph)


def empty_cache(graph: OnnxGraph, batch: int) -> dict[str, npt.NDArray[Any]]:
    """Zeros for the cache that a decoder graph reads."""
    return {
        str(value.name): np.zeros(
            [batch, *(size for size in sizes(value)[1:] if isinstance(size, int))], (value.dtype or FLOAT).numpy()
        )
        for value in graph.model.graph.inputs
        if str(value.name).startswith("past.")
    }


def step(
    graph: OnnxGraph, ids: npt.NDArray[Any], past: dict[str, npt.NDArray[Any]] | None = None, before: int = 0
) -> tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[Any]]]:
    """Run one step of a decoder graph: logits for its tokens, and the cache after it."""
    batch, tokens = ids.shape
    past = empty_cache(graph, batch) if past is None else past
    outputs = graph.run(
        {
            "input_ids": ids,
            "seqlens_k": np.full(batch, before + tokens - 1, np.int32),
            "total_sequence_length": np.array(before + tokens, np.int32),
            "logits_from": np.array([0]),
            **past,
        }
    )
    return outputs["logits"].astype(np.float32), {name: outputs[name.replace("past", "present")] for name in past}
